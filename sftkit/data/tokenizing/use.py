"""The tokenizing engine of a run, if there is one that is proved equal to `tokenizers` for its tokenizer."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from sftkit.data.tokenizing.backend import backend_of
from sftkit.data.tokenizing.borders import Borders
from sftkit.data.tokenizing.engine import TokenizingEngine
from sftkit.data.tokenizing.proof import proof_key, prove, store_proof, stored_proof
from sftkit.data.tokenizing.proven import COMPARED_TEXTS, ProvenEngine
from sftkit.errors import OF_ONE_PROCESS, ConfigError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(OF_ONE_PROCESS)

HOOK = "make_tokenizing"
COMPARED = 2000  # rows of each source that are tokenized twice, and the results compared
WORTHWHILE = 2 * COMPARED  # rows of a source for which an engine is used: of fewer, too many would be tokenized twice


class Use(NamedTuple):
    """How the texts of a batch of rows are tokenized.

    Attributes:
        engine: the engine; None for `tokenizers`.
        all_compared: whether all texts are compared with `tokenizers`, and not a sample.
    """

    engine: ProvenEngine | None = None
    all_compared: bool = False


UseOf: TypeAlias = Callable[[int], Use]
"""The number of rows of a source before a batch, to how the texts of the batch are tokenized."""


def no_engine(before: int) -> Use:
    """`tokenizers` does all the work."""
    return Use()


class EngineOfRun:
    """The engine of a run, which is made and proved when there are enough rows.

    Args:
        plugins: the selected plugins.
        tokenizer: the run's tokenizer.
        config: the run as resolved.
    """

    def __init__(self, plugins: Any, tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
        self._plugins, self._tokenizer, self._config = plugins, tokenizer, config
        self._making = threading.Lock()  # the sources of a stream are tokenized in threads of their own

    @property
    def refuted(self) -> bool:
        """Whether the engine has tokenized a text otherwise than `tokenizers`."""
        made = self.__dict__.get("_made")
        return made is not None and made.difference is not None

    def found(self, rows: int) -> ProvenEngine | None:
        """The engine for a source that has this many rows, or at least these; None if `tokenizers` does the work.

        Raises:
            ConfigError: if the run requires an engine that cannot be used.
        """
        return self._proved if rows >= WORTHWHILE and not self.refuted else None

    def of(self, rows: int | None) -> UseOf:
        """How the texts of a source are tokenized.

        Args:
            rows: the number of its rows; None if it is not known, as of a stream.
        """
        first = WORTHWHILE if rows is None else 0

        def use(before: int) -> Use:
            engine = self.found(before if rows is None else rows)
            return Use(engine, before < first + COMPARED)

        return use

    @property
    def _proved(self) -> ProvenEngine | None:
        with self._making:
            return self._made

    @cached_property
    def _made(self) -> ProvenEngine | None:
        engine = getattr(self._plugins.hook, HOOK)(tokenizer=self._tokenizer, config=self._config)
        where = self._plugins.responsible(HOOK)
        if engine is None:
            return None
        if not isinstance(engine, TokenizingEngine):
            what = f"it returns an object of type {type(engine).__name__}"
            raise ConfigError(Problem(what, where, "return an object of a class derived from TokenizingEngine"))
        made = prepare_engine(engine, self._tokenizer, backend_of(self._tokenizer).to_str(), where)
        if isinstance(made, ProvenEngine):
            return made
        if engine.required:
            fix = "let tokenizers do it: deselect the plugin, or do not require it"
            raise ConfigError(Problem(f"{engine.name} cannot be used for this tokenizer: {made}", where, fix))
        logger.info("tokenizers tokenizes the text, and not %s: %s", engine.name, made)
        return None

    def described(self, texts: Mapping[str, int], split: str) -> dict[str, Any]:
        """What a cache entry's ``info`` says about how the engine has tokenized its texts; this is logged, too.

        Args:
            texts: the number of its texts, and of those that were compared.
            split: whose texts they are.
        """
        assert self._proved is not None
        name = self._proved.engine.name
        if not self.refuted:
            what = "%s: %s tokenized %s texts; %s were compared with tokenizers, and are equal"
            logger.info(what, split, name, f"{texts[name]:,}", f"{texts[COMPARED_TEXTS]:,}")
        return {"tokenizing": dict(texts), "proof": self._proved.proof}


def prepare_engine(
    engine: TokenizingEngine, tokenizer: PreTrainedTokenizerBase, definition: str, where: str
) -> ProvenEngine | str:
    """An engine that is equal to `tokenizers` for a tokenizer, or why it is not used.

    The proof is read from the cache, or made and stored there.

    Args:
        engine: the engine.
        tokenizer: the tokenizer.
        definition: its ``tokenizer.json``.
        where: the plugin that made the engine.
    """
    parts = json.loads(definition)
    if parts["model"].get("dropout"):
        return "the tokenizer divides words at random (dropout)"
    backend = backend_of(tokenizer)
    if backend.encode_special_tokens:
        return "the tokenizer reads special tokens as text (split_special_tokens)"
    masks = [backend.encode("a", add_special_tokens=special).special_tokens_mask for special in (True, False)]
    prefixes, suffixes = ([_ones(mask) for mask in some] for some in (masks, [mask[::-1] for mask in masks]))
    around = (prefixes[0], prefixes[1]), (suffixes[0], suffixes[1])
    key = proof_key(engine, definition)
    made = ProvenEngine(engine, definition, where, key, *around, Borders.of(parts))
    proof = stored_proof(key)
    if proof is None:
        proof = prove(made, backend)
        if proof.texts:  # an engine that does not load may be repaired, or be on another machine
            store_proof(key, proof)
    if proof.failed:
        return proof.failed
    if proof.no_borders:
        made.borders = None
    return made


def accepts(plugins: Any, info: Mapping[str, Any]) -> bool:
    """Whether prepared rows can be used: not if an engine has tokenized them that was refuted or is deselected.

    Args:
        plugins: the selected plugins.
        info: the ``info`` of their cache entry.
    """
    deselected = not getattr(plugins.hook, HOOK).get_hookimpls()
    return not refutation(info) and not ("proof" in info and deselected)


def refutation(info: Mapping[str, Any]) -> str:
    """Why the engine that has tokenized prepared rows is not used any more; empty if it is, or if none has.

    Args:
        info: the ``info`` of their cache entry.
    """
    proof = stored_proof(info["proof"]) if "proof" in info else None
    return proof.failed if proof is not None else ""


def _ones(mask: list[int]) -> int:
    """The number of special tokens that a mask begins with; 0 if there are no others."""
    return mask.index(0) if 0 in mask else 0
