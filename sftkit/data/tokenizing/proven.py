# ruff: noqa: N806 (suffixes are shapes)
"""An engine with the tokenizer that it stands in for, proved equal to it, and compared with it while it is used."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sftkit.data.tokenizing.borders import Borders
from sftkit.data.tokenizing.engine import Tokenize, TokenizingEngine
from sftkit.data.tokenizing.proof import Difference, DiffersError, Proof, compare, store_proof
from sftkit.data.tokenizing.tokens import FlatTokens, Tokens
from sftkit.errors import OF_ONE_PROCESS, DataError, Problem

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(OF_ONE_PROCESS)

ONE_IN = 100  # texts of the rest of which one is
COMPARED_TEXTS = "compared"


@dataclass
class ProvenEngine:
    """An engine and the tokenizer that it stands in for. It can be pickled, and loads the engine when it is needed.

    Attributes:
        engine: the engine.
        definition: the tokenizer's ``tokenizer.json``.
        where: the plugin that made the engine.
        proof: what its proof is stored by.
        prefixes: the number of special tokens in front of a text, with special tokens and without.
        suffixes: the number of those after it.
        borders: the bytes that tokens stand for; None if texts that are trained in part are not for this engine.
        difference: what it has tokenized otherwise; it is not used again.
    """

    engine: TokenizingEngine
    definition: str
    where: str
    proof: str
    prefixes: tuple[int, int]
    suffixes: tuple[int, int]
    borders: Borders | None
    difference: Difference | None = None
    _tokenize: Tokenize | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokenize": None}

    def load(self) -> Tokenize:
        """The engine's function, loaded when it is first needed in a process.

        Raises:
            Exception: any that the engine raises.
        """
        if self._tokenize is None:
            self._tokenize = self.engine.load(self.definition)
        return self._tokenize

    def trial(self, texts: Sequence[str], special: bool, inside: bool) -> tuple[FlatTokens, np.ndarray]:
        """The tokens of texts, and of which of them the borders are known.

        Args:
            texts: the texts.
            special: whether to add special tokens.
            inside: whether characters inside of texts will be looked up.

        Raises:
            Exception: any that the engine raises.
        """
        import numpy as np

        ids, lengths = self.load()(texts, special)
        ids_S, lengths_N = np.asarray(ids).astype(np.int32, copy=False), np.asarray(lengths).astype(np.int64)
        if ids_S.shape != (lengths_N.sum(),) or lengths_N.shape != (len(texts),):
            raise ValueError(f"{ids_S.shape} ids of {lengths_N.shape} texts, instead of {len(texts)}")
        tokens = FlatTokens(ids_S, lengths_N, texts)
        known_N = np.zeros(len(texts), bool)
        if inside and self.borders is not None:
            around = self.prefixes[not special], self.suffixes[not special]
            tokens.ends_S, known_N = self.borders.ends(ids_S, tokens.offsets_N1, texts, *around)
        return tokens, known_N

    def tokens(
        self,
        texts: Sequence[str],
        backend: Any,
        special: bool,
        looked_up: tuple[np.ndarray, np.ndarray],
        all_compared: bool,
    ) -> Tokens:
        """The tokens of texts, some of which are compared with those of `tokenizers`.

        Args:
            texts: the texts.
            backend: the tokenizer of the library `tokenizers`.
            special: whether to add special tokens.
            looked_up: the characters that will be looked up: the number of the text, and the place in it, of each.
            all_compared: whether to compare all texts, and not a sample.

        Raises:
            DiffersError: for a text with other tokens, or if the engine fails.
        """
        import numpy as np

        owners_M, characters_M = looked_up
        try:
            tokens, known_N = self.trial(texts, special, bool(len(owners_M)))
        except Exception as error:  # each engine has its own
            raise DiffersError(Difference("", f"it fails: {type(error).__name__}: {error}")) from error
        compared = range(len(texts)) if all_compared else _sample(texts)
        unknown = np.unique(owners_M[~known_N[owners_M]]).tolist()
        both = sorted({*compared, *unknown})
        encode = backend.encode_batch if len(owners_M) else backend.encode_batch_fast
        encodings = dict(zip(both, encode([texts[at] for at in both], add_special_tokens=special), strict=True))
        inside: dict[int, list[int]] = {}
        some_M = np.isin(owners_M, both) & known_N[owners_M]
        for owner, character in zip(owners_M[some_M].tolist(), characters_M[some_M].tolist(), strict=True):
            inside.setdefault(owner, []).append(character)
        for number, encoding in encodings.items():
            if difference := compare(texts[number], encoding, tokens, number, inside.get(number, ())):
                with_offsets = backend.encode(texts[number], add_special_tokens=special)
                raise DiffersError(compare(texts[number], with_offsets, tokens, number, ()) or difference)
        tokens.encodings.update((number, encodings[number]) for number in unknown)
        tokens.counts.update({self.engine.name: len(texts), COMPARED_TEXTS: len(both)})
        return tokens

    def refuted(self, difference: Difference) -> None:
        """Note that the engine gives other tokens, so that it is not used again: here, and in later runs.

        An engine that has failed is not used again in this run.

        Raises:
            DataError: if the run requires the engine.
        """
        if self.difference is not None:
            return
        self.difference = difference
        if difference.text:
            store_proof(self.proof, Proof(0, str(difference)))
        if self.engine.required:
            what = f"{self.engine.name} does not tokenize this data as tokenizers does: {difference}"
            raise DataError(Problem(what, self.where, "let tokenizers do it: deselect the plugin"))
        what = "%s is not used: it does not tokenize this data as tokenizers does: %s"
        logger.warning(what, self.engine.name, difference)


def _sample(texts: Sequence[str]) -> list[int]:
    """One of `ONE_IN` texts, by their contents, so that it does not matter which process tokenizes them."""
    return [at for at, text in enumerate(texts) if not zlib.crc32(text.encode()) % ONE_IN]
