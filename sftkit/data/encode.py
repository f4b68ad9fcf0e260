# ruff: noqa: N803, N806 (suffixes are shapes)
"""Documents to token ids and labels: the joined text is tokenized once, and the spans carry over by character offsets.

Legend: N documents, S tokens in all of them, R regions (runs of trained characters of one weight) in all of them.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from sftkit.data.columns import IGNORE_INDEX, Examples
from sftkit.data.documents import Document
from sftkit.data.regions import Texts
from sftkit.data.threads import thread_ahead

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

SpecialTokens: TypeAlias = Literal["bos_eos", "tokenizer", "once", "none"]
AHEAD = 2  # pieces that wait for the tokenizer, so that it never waits for them


def encode(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, special_tokens: SpecialTokens
) -> Examples:
    """Tokenize documents and label the trained tokens.

    A token is trained if the *last* character it covers is: where tokens merge across a border, the straddling token
    belongs to what it ends in, since it cannot be produced without producing that. The first token of a document has
    no context and is never trained. A token's weight is found in the same way: it is that of the last character.

    Args:
        documents: spans of each document; an empty document gives an empty example.
        tokenizer: a fast tokenizer.
        special_tokens: around each document. ``bos_eos`` puts BOS in front as the tokenizer does, never doubled, and
            EOS at the end, once; it is trained if the document's last character is, and has its weight.
            ``tokenizer`` puts there what the tokenizer itself does, trained in the same way; ``once`` too, but nothing
            in front of a text that begins with it already; and ``none`` nothing.

    Raises:
        DataError: for a span whose weight is negative or no finite number.
    """
    return Encoder.of(tokenizer, special_tokens)(documents)


def encode_stream(
    batches: Iterable[Sequence[Document]], tokenizer: PreTrainedTokenizerBase, special_tokens: SpecialTokens
) -> Iterator[Examples]:
    """`encode` batch by batch, each in pieces: the next one is tokenized, in a thread, while the last is laid out."""
    encoder = Encoder.of(tokenizer, special_tokens)
    waiting: deque[tuple[Texts, Future[list[Any]]]] = deque()
    with thread_ahead() as pool:
        for texts in (piece for documents in batches for piece in Texts.pieces_of(documents)):
            waiting.append((texts, pool.submit(encoder.tokenize, texts)))
            if len(waiting) > AHEAD:
                yield encoder.lay_out(*_result(waiting))
        while waiting:
            yield encoder.lay_out(*_result(waiting))


def _result(waiting: deque[tuple[Texts, Future[list[Any]]]]) -> tuple[Texts, list[Any]]:
    texts, encodings = waiting.popleft()
    return texts, encodings.result()


@dataclass(frozen=True)
class Encoder:
    """What encoding needs of a tokenizer, read once."""

    backend: Any
    special_tokens: SpecialTokens
    bos: int | None
    eos: int | None
    front: tuple[int, ...]
    """Special tokens that the tokenizer itself puts in front of a text."""
    suffix: int
    """Special tokens that the tokenizer itself puts behind a text, and that do not count as its last character."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, special_tokens: SpecialTokens) -> Encoder:
        """For a fast tokenizer, whose own truncation and padding are switched off."""
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        probe = backend.encode("a", add_special_tokens=special_tokens != "none")
        mask = probe.special_tokens_mask
        front = tuple(probe.ids[: mask.index(0)]) if 0 in mask else ()
        suffix = mask[::-1].index(0) if 0 in mask and special_tokens == "bos_eos" else 0
        return cls(backend, special_tokens, tokenizer.bos_token_id, tokenizer.eos_token_id, front, suffix)

    def __call__(self, documents: Sequence[Document]) -> Examples:
        """One batch."""
        parts = [self.lay_out(texts, self.tokenize(texts)) for texts in Texts.pieces_of(documents)]
        return Examples.concatenate(parts)

    def tokenize(self, texts: Texts) -> list[Any]:
        """The encodings of the texts; with offsets only where a border lies inside a text."""
        ends = zip(texts.owners, texts.ends, strict=True)
        borders = any(texts.starts) or any(end < len(texts.texts[owner]) for owner, end in ends)
        work = self.backend.encode_batch if borders else self.backend.encode_batch_fast
        return work(texts.texts, add_special_tokens=self.special_tokens != "none")

    def lay_out(self, texts: Texts, encodings: list[Any]) -> Examples:
        """Ids and labels as flat arrays."""
        import numpy as np

        ids = array("i")
        lengths_N = np.empty(len(encodings), np.int64)
        for index, encoding in enumerate(encodings):
            some = encoding.ids
            lengths_N[index] = len(some)
            ids.fromlist(some)
        offsets_N1 = np.concatenate([[0], np.cumsum(lengths_N)])
        ids_S = np.frombuffer(ids, np.int32) if ids else np.zeros(0, np.int32)
        sizes_N = np.fromiter(map(len, texts.texts), np.int64, len(texts.texts))
        owners_R, starts_R, ends_R = (np.array(part, np.int64) for part in texts[1:4])
        inside_R = ends_R < sizes_N[owners_R]
        firsts_R, lasts_R = self._tokens_of(encodings, offsets_N1, owners_R, starts_R, ends_R, inside_R)
        weights_R = np.array(texts.weights, np.float32)
        if (weights_R == 1).all():
            weights_R = np.ones(len(weights_R), bool)
        counts_S = _spread(weights_R, firsts_R, lasts_R, len(ids_S))
        if self.special_tokens == "bos_eos":
            ends_N = np.zeros(len(sizes_N), counts_S.dtype)
            ends_N[owners_R[~inside_R]] = weights_R[~inside_R]
            ids_S, counts_S, offsets_N1 = self._fix_special_tokens(ids_S, counts_S, offsets_N1, ends_N, sizes_N > 0)
        elif self.special_tokens == "once" and self.front:
            ids_S, counts_S, offsets_N1 = self._drop_doubled_front(ids_S, counts_S, offsets_N1)
        first_N = offsets_N1[:-1][np.diff(offsets_N1) > 0]
        counts_S[first_N] = 0
        trained_S = counts_S > 0
        weights_S = None if counts_S.dtype == bool else np.where(trained_S, counts_S, np.float32(1))
        return Examples(ids_S, np.where(trained_S, ids_S, np.int32(IGNORE_INDEX)), offsets_N1, weights_S)

    def _tokens_of(
        self,
        encodings: list[Any],
        offsets_N1: np.ndarray,
        owners_R: np.ndarray,
        starts_R: np.ndarray,
        ends_R: np.ndarray,
        inside_R: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The first token that ends inside each region, and the one behind its last, as numbers in all the tokens.

        ``inside_R`` is whether the region ends before its text does.
        """
        import numpy as np

        whole_R = np.maximum(np.diff(offsets_N1)[owners_R] - self.suffix, 0)
        firsts_R = _tokens_at(encodings, owners_R, starts_R, whole_R, starts_R > 0)
        lasts_R = np.where(inside_R, _tokens_at(encodings, owners_R, ends_R, whole_R, inside_R), whole_R)
        base_R = offsets_N1[owners_R]
        return base_R + firsts_R, base_R + lasts_R

    def _drop_doubled_front(
        self, ids_S: np.ndarray, counts_S: np.ndarray, offsets_N1: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Without the tokens that stand in front of a text that began with them already."""
        import numpy as np

        size = len(self.front)
        first_N = offsets_N1[:-1][np.diff(offsets_N1) >= 2 * size]
        places = first_N[:, None] + np.arange(size)
        doubled_N = (ids_S[places] == self.front).all(1) & (ids_S[places + size] == self.front).all(1)
        offsets_N1 = offsets_N1 - size * np.searchsorted(first_N[doubled_N], offsets_N1, side="left")
        dropped = places[doubled_N].ravel()
        return np.delete(ids_S, dropped), np.delete(counts_S, dropped), offsets_N1

    def _fix_special_tokens(
        self,
        ids_S: np.ndarray,
        counts_S: np.ndarray,
        offsets_N1: np.ndarray,
        ends_N: np.ndarray,
        filled_N: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """BOS once at the start, EOS once at the end, which counts as the document's last character (``ends_N``)."""
        import numpy as np

        if self.bos is not None and self.bos != self.eos:
            while True:
                first_N = offsets_N1[:-1][np.diff(offsets_N1) > 1]
                doubled = first_N[(ids_S[first_N] == self.bos) & (ids_S[first_N + 1] == self.bos)]
                if not len(doubled):
                    break
                offsets_N1 = offsets_N1 - np.searchsorted(doubled, offsets_N1, side="left")
                ids_S, counts_S = np.delete(ids_S, doubled), np.delete(counts_S, doubled)
        if self.eos is None:
            return ids_S, counts_S, offsets_N1
        lengths_N = np.diff(offsets_N1)
        last_N = offsets_N1[1:] - 1
        has_N = (lengths_N > 0) & (ids_S[np.maximum(last_N, 0)] == self.eos if len(ids_S) else False)
        has_N &= ~((lengths_N == 1) & (self.eos == self.bos))
        counts_S[last_N[has_N & filled_N]] = ends_N[has_N & filled_N]
        wanted_N = filled_N & ~has_N
        where = offsets_N1[1:][wanted_N]
        ids_S = np.insert(ids_S, where, self.eos)
        counts_S = np.insert(counts_S, where, ends_N[wanted_N])
        offsets_N1 = offsets_N1 + np.concatenate([[0], np.cumsum(wanted_N)])
        return ids_S, counts_S, offsets_N1


def _spread(weights_R: np.ndarray, firsts_R: np.ndarray, lasts_R: np.ndarray, size: int) -> np.ndarray:
    """How much each of ``size`` tokens counts: the weight of its region (bool or float32, as given), 0 outside."""
    import numpy as np

    if weights_R.dtype == bool:
        change = np.bincount(firsts_R, minlength=size + 1) - np.bincount(lasts_R, minlength=size + 1)
        return np.cumsum(change[:-1]) > 0
    lengths_R = np.maximum(lasts_R - firsts_R, 0)
    inside = np.repeat(firsts_R - (np.cumsum(lengths_R) - lengths_R), lengths_R) + np.arange(lengths_R.sum())
    counts_S = np.zeros(size, np.float32)
    counts_S[inside] = np.repeat(weights_R, lengths_R)
    return counts_S


def _tokens_at(
    encodings: list[Any], owners_R: np.ndarray, at_R: np.ndarray, whole_R: np.ndarray, which_R: np.ndarray
) -> np.ndarray:
    """The first token that ends behind a character, or the number of tokens if none does; 0 where not asked."""
    import numpy as np

    owners, characters = owners_R[which_R].tolist(), at_R[which_R].tolist()
    found = [encodings[owner].char_to_token(at) for owner, at in zip(owners, characters, strict=True)]
    if None in found:
        # No token covers the character, as where a tokenizer drops white space.
        whole = whole_R[which_R].tolist()
        for index, token in enumerate(found):
            if token is None:
                ends = enumerate(encodings[owners[index]].offsets)
                found[index] = next((at for at, (_, end) in ends if end > characters[index]), whole[index])
    tokens_R = np.zeros(len(owners_R), np.int64)
    tokens_R[which_R] = found
    return tokens_R
