# ruff: noqa: N803, N806 (suffixes are shapes)
"""Documents to token ids and labels: the joined text is tokenized once, and the spans carry over by character offsets.

Legend: N documents, S tokens in all of them, R regions (runs of trained characters) in all of them.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sftkit.data.columns import IGNORE, Examples
from sftkit.data.documents import Document

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

AHEAD = 2  # pieces that wait for the tokenizer, so that it never waits for them
PIECE = 1 << 21  # characters tokenized at once, about: what the tokenizer tells of them takes some 30 bytes each


def encode(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool) -> Examples:
    """Tokenize documents and label the trained tokens.

    A token is trained if the *last* character it covers is: where tokens merge across a border, the straddling token
    belongs to what it ends in, since it cannot be produced without producing that. The first token of a document has
    no context and is never trained. BOS is never doubled, and EOS is appended once.

    Args:
        documents: spans of each document; an empty document gives an empty example.
        tokenizer: a fast tokenizer.
        add_special_tokens: put BOS in front as the tokenizer does, and EOS at the end; it is trained if the
            document's last character is.
    """
    return Encoder.of(tokenizer, add_special_tokens)(documents)


def encode_stream(
    batches: Iterable[Sequence[Document]], tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool
) -> Iterator[Examples]:
    """`encode` batch by batch, each in pieces: the next one is tokenized, in a thread, while the last is laid out."""
    encoder = Encoder.of(tokenizer, add_special_tokens)
    waiting: deque[tuple[_Texts, Future[list[Any]]]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for texts in (piece for documents in batches for piece in _Texts.pieces_of(documents)):
            waiting.append((texts, pool.submit(encoder.tokenize, texts)))
            if len(waiting) > AHEAD:
                yield encoder.lay_out(*_result(waiting))
        while waiting:
            yield encoder.lay_out(*_result(waiting))


def _result(waiting: deque[tuple[_Texts, Future[list[Any]]]]) -> tuple[_Texts, list[Any]]:
    texts, encodings = waiting.popleft()
    return texts, encodings.result()


class _Texts(NamedTuple):
    """Documents as whole texts, and all their regions: whose each is, its first character, and the one behind it."""

    texts: list[str]
    owners: list[int]
    starts: list[int]
    ends: list[int]

    @classmethod
    def pieces_of(cls, documents: Sequence[Document]) -> Iterator[_Texts]:
        """Some documents at a time, about `PIECE` characters."""
        piece, characters = cls([], [], [], []), 0
        texts, owners, starts, ends = piece
        for spans in documents:
            if characters >= PIECE:
                yield piece
                piece, characters = cls([], [], [], []), 0
                texts, owners, starts, ends = piece
            owner, end, last = len(texts), 0, -1
            for text, trained in spans:
                start, end = end, end + len(text)
                if trained and text:
                    if last == start:
                        ends[-1] = end
                    else:
                        owners.append(owner)
                        starts.append(start)
                        ends.append(end)
                    last = end
            texts.append(spans[0][0] if len(spans) == 1 else "".join([text for text, _ in spans]))
            characters += end
        yield piece


@dataclass(frozen=True)
class Encoder:
    """What encoding needs of a tokenizer, read once."""

    backend: Any
    add_special_tokens: bool
    bos: int | None
    eos: int | None
    suffix: int
    """Special tokens that the tokenizer itself puts behind a text."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool) -> Encoder:
        """For a fast tokenizer, whose own truncation and padding are switched off."""
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        mask = backend.encode("a", add_special_tokens=add_special_tokens).special_tokens_mask
        suffix = mask[::-1].index(0) if 0 in mask else 0
        return cls(backend, add_special_tokens, tokenizer.bos_token_id, tokenizer.eos_token_id, suffix)

    def __call__(self, documents: Sequence[Document]) -> Examples:
        """One batch."""
        parts = [self.lay_out(texts, self.tokenize(texts)) for texts in _Texts.pieces_of(documents)]
        return Examples.concatenate(parts)

    def tokenize(self, texts: _Texts) -> list[Any]:
        """The encodings of the texts; with offsets only where a border lies inside a text."""
        ends = zip(texts.owners, texts.ends, strict=True)
        borders = any(texts.starts) or any(end < len(texts.texts[owner]) for owner, end in ends)
        work = self.backend.encode_batch if borders else self.backend.encode_batch_fast
        return work(texts.texts, add_special_tokens=self.add_special_tokens)

    def lay_out(self, texts: _Texts, encodings: list[Any]) -> Examples:
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
        owners_R, starts_R, ends_R = (np.array(part, np.int64) for part in texts[1:])
        inside_R = ends_R < sizes_N[owners_R]
        trained_S = self._trained(encodings, offsets_N1, owners_R, starts_R, ends_R, inside_R)
        if self.add_special_tokens:
            ends_trained_N = np.zeros(len(sizes_N), bool)
            ends_trained_N[owners_R[~inside_R]] = True
            ids_S, trained_S, offsets_N1 = self._fix_special_tokens(
                ids_S, trained_S, offsets_N1, ends_trained_N, sizes_N > 0
            )
        first_N = offsets_N1[:-1][np.diff(offsets_N1) > 0]
        trained_S[first_N] = False
        return Examples(ids_S, np.where(trained_S, ids_S, np.int32(IGNORE)), offsets_N1)

    def _trained(
        self,
        encodings: list[Any],
        offsets_N1: np.ndarray,
        owners_R: np.ndarray,
        starts_R: np.ndarray,
        ends_R: np.ndarray,
        inside_R: np.ndarray,
    ) -> np.ndarray:
        """Which tokens (bool, S) end inside a trained region; ``inside_R``: the region ends before its text does."""
        import numpy as np

        whole_R = np.maximum(np.diff(offsets_N1)[owners_R] - self.suffix, 0)
        firsts_R = _tokens_at(encodings, owners_R, starts_R, whole_R, starts_R > 0)
        lasts_R = np.where(inside_R, _tokens_at(encodings, owners_R, ends_R, whole_R, inside_R), whole_R)
        base_R = offsets_N1[owners_R]
        size = int(offsets_N1[-1]) + 1
        change = np.bincount(base_R + firsts_R, minlength=size) - np.bincount(base_R + lasts_R, minlength=size)
        return np.cumsum(change[:-1]) > 0

    def _fix_special_tokens(
        self,
        ids_S: np.ndarray,
        trained_S: np.ndarray,
        offsets_N1: np.ndarray,
        ends_trained_N: np.ndarray,
        filled_N: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """BOS once at the start, EOS once at the end; the EOS is trained where the document's last character is."""
        import numpy as np

        if self.bos is not None and self.bos != self.eos:
            while True:
                first_N = offsets_N1[:-1][np.diff(offsets_N1) > 1]
                doubled = first_N[(ids_S[first_N] == self.bos) & (ids_S[first_N + 1] == self.bos)]
                if not len(doubled):
                    break
                offsets_N1 = offsets_N1 - np.searchsorted(doubled, offsets_N1, side="left")
                ids_S, trained_S = np.delete(ids_S, doubled), np.delete(trained_S, doubled)
        if self.eos is None:
            return ids_S, trained_S, offsets_N1
        lengths_N = np.diff(offsets_N1)
        last_N = offsets_N1[1:] - 1
        has_N = (lengths_N > 0) & (ids_S[np.maximum(last_N, 0)] == self.eos if len(ids_S) else False)
        has_N &= ~((lengths_N == 1) & (self.eos == self.bos))
        trained_S[last_N[has_N & filled_N]] = ends_trained_N[has_N & filled_N]
        wanted_N = filled_N & ~has_N
        where = offsets_N1[1:][wanted_N]
        ids_S = np.insert(ids_S, where, self.eos)
        trained_S = np.insert(trained_S, where, ends_trained_N[wanted_N])
        offsets_N1 = offsets_N1 + np.concatenate([[0], np.cumsum(wanted_N)])
        return ids_S, trained_S, offsets_N1


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
