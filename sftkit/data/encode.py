# ruff: noqa: N803, N806 (suffixes are shapes)
"""Documents to token ids and labels: the joined text is tokenized once, and spans are mapped by character offsets.

Legend: N documents, S tokens in all of them, R regions (runs of trained characters with one weight) in all of them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from sftkit.data.columns import IGNORE_INDEX, Examples
from sftkit.data.documents import Document
from sftkit.data.regions import PIECE, Texts
from sftkit.data.threads import SameThread, thread_ahead
from sftkit.data.tokenizing.backend import backend_of
from sftkit.data.tokenizing.proof import DiffersError
from sftkit.data.tokenizing.tokens import EncodedTokens, Tokens
from sftkit.data.tokenizing.use import Use, UseOf, no_engine

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

SpecialTokens: TypeAlias = Literal["bos_eos", "tokenizer", "once", "none"]
AHEAD = 2  # pieces queued for the tokenizer, so that it is never idle
FAR_AHEAD = 8  # pieces, if they are small: the first of them may wait for an engine to load


class NumberedDocuments(NamedTuple):
    """Documents, and the numbers of the rows that they come from.

    Attributes:
        numbers: the number of the row of each document.
        documents: the documents.
        batch: the number of the batch of rows that they come from.
        before: the number of rows of the source before this batch.
    """

    numbers: Sequence[int]
    documents: Sequence[Document]
    batch: int = 0
    before: int = 0


def encode(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, special_tokens: SpecialTokens
) -> Examples:
    """Tokenize documents and label the trained tokens.

    A token is trained if the *last* character that it covers is trained: a token across a boundary belongs to the span
    that it ends in, since the model cannot write that span without producing the token. The first token of a document
    has no context and is never trained. A token has the weight of the last character that it covers.

    Args:
        documents: the spans of each document; an empty document gives an empty example.
        tokenizer: a fast tokenizer.
        special_tokens: what to add around each document. ``bos_eos`` adds BOS at the start if the tokenizer does,
            never twice, and one EOS at the end, which is trained like the document's last character and has its
            weight; a text that ends with EOS keeps its own, also before whitespace, which is then not trained.
            ``tokenizer`` adds what the tokenizer adds, trained in the same way. ``once`` adds the same, but
            nothing at the start of a text that already begins with it. ``none`` adds nothing.

    Raises:
        DataError: for a span whose weight is negative, not finite, or not a number.
    """
    encoder = Encoder.of(tokenizer, special_tokens)
    parts = [encoder.label(texts, encoder.tokenize(texts)).examples for texts in Texts.pieces_of(documents)]
    return Examples.concatenate(parts)


class Labelled(NamedTuple):
    """Encoded documents.

    Attributes:
        examples: one per document.
        with_eos: number of documents whose text already ended with EOS, so that none was added.
        tokenizing: how the texts were tokenized, if an engine did it.
    """

    examples: Examples
    with_eos: int
    tokenizing: Counter[str] = Counter()  # noqa: RUF012 (a default that nobody changes)


def encode_stream(
    batches: Iterable[NumberedDocuments],
    tokenizer: PreTrainedTokenizerBase,
    special_tokens: SpecialTokens,
    ahead: int = AHEAD,
    use: UseOf = no_engine,
) -> Iterator[tuple[NumberedDocuments, Labelled]]:
    """`encode` batch by batch and piece by piece, while a thread tokenizes the next pieces.

    Args:
        batches: the documents.
        tokenizer: a fast tokenizer.
        special_tokens: see `encode`.
        ahead: pieces that are queued for the thread; 0 for no thread.
        use: how the texts are tokenized.

    Yields:
        The documents of each piece, with the numbers of their rows, and what they became.
    """
    encoder = Encoder.of(tokenizer, special_tokens)
    pending: deque[tuple[NumberedDocuments, Texts, Future[Tokens]]] = deque()
    queued = 0  # characters

    def tokenize(texts: Texts, before: int) -> Tokens:
        return encoder.tokenize(texts, use(before))

    def finish(source: NumberedDocuments, texts: Texts, tokens: Future[Tokens]) -> Any:
        return source, encoder.label(texts, tokens.result())

    with thread_ahead() if ahead else SameThread() as pool:
        for numbers, documents, batch, before in batches:
            start = 0
            for texts in Texts.pieces_of(documents):
                end = start + len(texts.texts)
                source = NumberedDocuments(numbers[start:end], documents[start:end], batch, before)
                pending.append((source, texts, pool.submit(tokenize, texts, before)))
                start, queued = end, queued + sum(map(len, texts.texts))
                while len(pending) > ahead or (len(pending) > AHEAD and queued > AHEAD * PIECE):
                    queued -= sum(map(len, pending[0][1].texts))
                    yield finish(*pending.popleft())
        while pending:
            yield finish(*pending.popleft())


@dataclass(frozen=True)
class Encoder:
    """What encoding needs from a tokenizer, read once.

    Attributes:
        backend: the tokenizer of the library `tokenizers`.
        special_tokens: see `encode`.
        bos: id of the BOS token, if there is one.
        eos: id of the EOS token, if there is one.
        eos_text: the EOS token as text; empty if there is none.
        prefix: the special tokens that the tokenizer adds at the start of a text.
        suffix: the number of special tokens that the tokenizer adds at the end of a text and that ``bos_eos`` does not
            treat as part of the text.
    """

    backend: Any
    special_tokens: SpecialTokens
    bos: int | None
    eos: int | None
    eos_text: str
    prefix: tuple[int, ...]
    suffix: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, special_tokens: SpecialTokens) -> Encoder:
        """For a fast tokenizer, whose own truncation and padding are switched off."""
        backend = backend_of(tokenizer)
        probe = backend.encode("a", add_special_tokens=special_tokens != "none")
        mask = probe.special_tokens_mask
        prefix = tuple(probe.ids[: mask.index(0)]) if 0 in mask else ()
        suffix = mask[::-1].index(0) if 0 in mask and special_tokens == "bos_eos" else 0
        bos, eos, eos_text = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.eos_token or ""
        return cls(backend, special_tokens, bos, eos, eos_text, prefix, suffix)

    def tokenize(self, texts: Texts, use: Use = Use()) -> Tokens:  # noqa: B008 (immutable)
        """The tokens of the texts, with borders only if a region starts or ends inside a text.

        Args:
            texts: the texts.
            use: the engine that does it.
        """
        import numpy as np

        engine, special = use.engine, self.special_tokens != "none"
        owners_R, starts_R, ends_R = (np.array(part, np.int64) for part in texts[1:4])
        sizes_N = np.fromiter(map(len, texts.texts), np.int64, len(texts.texts))
        begin_R, end_R = starts_R > 0, ends_R < sizes_N[owners_R]
        if engine is not None and engine.difference is None and (engine.borders or not (begin_R | end_R).any()):
            owners_M = np.concatenate([owners_R[begin_R], owners_R[end_R]])
            looked_up = owners_M, np.concatenate([starts_R[begin_R], ends_R[end_R]])
            try:
                return engine.tokens(texts.texts, self.backend, special, looked_up, use.all_compared)
            except DiffersError as error:
                engine.refuted(error.difference)
        inside = bool((begin_R | end_R).any())
        encode_batch = self.backend.encode_batch if inside else self.backend.encode_batch_fast
        return EncodedTokens(encode_batch(texts.texts, add_special_tokens=special))

    def label(self, texts: Texts, tokens: Tokens) -> Labelled:
        """The ids and labels of tokenized texts as flat arrays."""
        import numpy as np

        ids_S, lengths_N, offsets_N1 = tokens.ids_S, tokens.lengths_N, tokens.offsets_N1
        sizes_N = np.fromiter(map(len, texts.texts), np.int64, len(texts.texts))
        owners_R, starts_R, ends_R = (np.array(part, np.int64) for part in texts[1:4])
        inside_R = ends_R < sizes_N[owners_R]
        # the first token that ends inside each region, and the one after its last, counted in the region's text
        whole_R = np.maximum(lengths_N[owners_R] - self.suffix, 0)
        firsts_R = _tokens_at(tokens, owners_R, starts_R, whole_R, starts_R > 0)
        lasts_R = np.where(inside_R, _tokens_at(tokens, owners_R, ends_R, whole_R, inside_R), whole_R)
        base_R = offsets_N1[owners_R]
        weights_R = np.array(texts.weights, np.float32)
        if (weights_R == 1).all():
            weights_R = np.ones(len(weights_R), bool)
        weights_S = _spread(weights_R, base_R + firsts_R, base_R + lasts_R, len(ids_S))
        with_eos_N = np.zeros(len(sizes_N), bool)
        if self.special_tokens == "bos_eos":
            ends_N = np.zeros(len(sizes_N), weights_S.dtype)
            ends_N[owners_R[~inside_R]] = weights_R[~inside_R]
            own = self._own_eos(texts.texts, tokens)
            with_eos_N[list(own)] = True
            ids_S, weights_S, offsets_N1 = self._end_at(own, ids_S, weights_S, offsets_N1)
            ids_S, weights_S, offsets_N1 = self._fix_bos(ids_S, weights_S, offsets_N1)
            ids_S, weights_S, offsets_N1 = self._add_eos(
                ids_S, weights_S, offsets_N1, ends_N, (sizes_N > 0) & ~with_eos_N
            )
        elif self.special_tokens == "once" and self.prefix:
            ids_S, weights_S, offsets_N1 = self._drop_second_prefix(ids_S, weights_S, offsets_N1)
        weights_S[offsets_N1[:-1][np.diff(offsets_N1) > 0]] = 0  # the first token of each document
        trained_S = weights_S > 0
        labels_S = np.where(trained_S, ids_S, np.int32(IGNORE_INDEX))
        weights = None if weights_S.dtype == bool else np.where(trained_S, weights_S, np.float32(1))
        return Labelled(Examples(ids_S, labels_S, offsets_N1, weights), int(with_eos_N.sum()), tokens.counts)

    def _own_eos(self, texts: Sequence[str], tokens: Tokens) -> dict[int, int]:
        """The token of the EOS that texts end with, by their number; more EOS and whitespace may follow it."""
        found = {}
        for number, text in enumerate(texts) if self.eos_text else ():
            rest, times = text.rstrip(), 0
            while rest.endswith(self.eos_text):
                rest, times = rest.removesuffix(self.eos_text).rstrip(), times + 1
            if not times:
                continue
            ids = tokens.ids_of(number)
            places = [at for at in range(len(ids) - self.suffix) if ids[at] == self.eos]
            # At the start of a text, a token that is both BOS and EOS is BOS.
            if len(places) >= times and (places[-times] or self.eos != self.bos):
                found[number] = places[-times]
        return found

    def _end_at(
        self, own: dict[int, int], ids_S: np.ndarray, weights_S: np.ndarray, offsets_N1: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Documents that end at their own EOS: what follows it is not trained, and a second EOS is removed."""
        import numpy as np

        removed_N = np.zeros(len(offsets_N1) - 1, np.int64)
        removed: list[int] = []
        for number, token in own.items():
            start, end = offsets_N1[number] + token + 1, offsets_N1[number + 1]
            weights_S[start:end] = 0
            again = start + np.flatnonzero(ids_S[start:end] == self.eos)
            removed_N[number] = len(again)
            removed.extend(again.tolist())
        if not removed:
            return ids_S, weights_S, offsets_N1
        offsets_N1 = offsets_N1 - np.concatenate([[0], np.cumsum(removed_N)])
        return np.delete(ids_S, removed), np.delete(weights_S, removed), offsets_N1

    def _drop_second_prefix(
        self, ids_S: np.ndarray, weights_S: np.ndarray, offsets_N1: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Without the prefix of texts that already began with it."""
        import numpy as np

        size = len(self.prefix)
        first_N = offsets_N1[:-1][np.diff(offsets_N1) >= 2 * size]
        places = first_N[:, None] + np.arange(size)
        doubled_N = (ids_S[places] == self.prefix).all(1) & (ids_S[places + size] == self.prefix).all(1)
        offsets_N1 = offsets_N1 - size * np.searchsorted(first_N[doubled_N], offsets_N1, side="left")
        dropped = places[doubled_N].ravel()
        return np.delete(ids_S, dropped), np.delete(weights_S, dropped), offsets_N1

    def _fix_bos(
        self, ids_S: np.ndarray, weights_S: np.ndarray, offsets_N1: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """At most one BOS at the start of each document."""
        import numpy as np

        while self.bos is not None and self.bos != self.eos:
            first_N = offsets_N1[:-1][np.diff(offsets_N1) > 1]
            doubled = first_N[(ids_S[first_N] == self.bos) & (ids_S[first_N + 1] == self.bos)]
            if not len(doubled):
                break
            offsets_N1 = offsets_N1 - np.searchsorted(doubled, offsets_N1, side="left")
            ids_S, weights_S = np.delete(ids_S, doubled), np.delete(weights_S, doubled)
        return ids_S, weights_S, offsets_N1

    def _add_eos(
        self,
        ids_S: np.ndarray,
        weights_S: np.ndarray,
        offsets_N1: np.ndarray,
        ends_N: np.ndarray,
        which_N: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One EOS at the end of these documents, with the weight of their last character (``ends_N``)."""
        import numpy as np

        if self.eos is None:
            return ids_S, weights_S, offsets_N1
        lengths_N = np.diff(offsets_N1)
        last_N = offsets_N1[1:] - 1
        has_N = which_N & (lengths_N > 0) & (ids_S[np.maximum(last_N, 0)] == self.eos if len(ids_S) else False)
        has_N &= ~((lengths_N == 1) & (self.eos == self.bos))
        weights_S[last_N[has_N]] = ends_N[has_N]
        missing_N = which_N & ~has_N
        where = offsets_N1[1:][missing_N]
        ids_S = np.insert(ids_S, where, self.eos)
        weights_S = np.insert(weights_S, where, ends_N[missing_N])
        offsets_N1 = offsets_N1 + np.concatenate([[0], np.cumsum(missing_N)])
        return ids_S, weights_S, offsets_N1


def _spread(weights_R: np.ndarray, firsts_R: np.ndarray, lasts_R: np.ndarray, size: int) -> np.ndarray:
    """The weight of each of ``size`` tokens: that of its region, with its dtype (bool or float32); 0 outside."""
    import numpy as np

    if weights_R.dtype == bool:
        change = np.bincount(firsts_R, minlength=size + 1) - np.bincount(lasts_R, minlength=size + 1)
        return np.cumsum(change[:-1]) > 0
    lengths_R = np.maximum(lasts_R - firsts_R, 0)
    inside = np.repeat(firsts_R - (np.cumsum(lengths_R) - lengths_R), lengths_R) + np.arange(lengths_R.sum())
    weights_S = np.zeros(size, np.float32)
    weights_S[inside] = np.repeat(weights_R, lengths_R)
    return weights_S


def _tokens_at(
    tokens: Tokens, owners_R: np.ndarray, at_R: np.ndarray, whole_R: np.ndarray, which_R: np.ndarray
) -> np.ndarray:
    """The first token that ends after a character, or the number of tokens if none does; 0 outside of ``which_R``."""
    import numpy as np

    tokens_R = np.zeros(len(owners_R), np.int64)
    tokens_R[which_R] = tokens.first_after(*(each[which_R].tolist() for each in (owners_R, at_R, whole_R)))
    return tokens_R
