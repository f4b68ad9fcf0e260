# ruff: noqa: N803, N806 (suffixes are shapes)
"""Documents to token ids and labels: the joined text is tokenized once, and the spans carry over by character offsets.

Legend: N documents, S tokens in all of them, R regions (runs of trained characters) in all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from sftkit.data.columns import IGNORE, Examples
from sftkit.data.documents import Document

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

Region: TypeAlias = tuple[int, int]
"""First trained character of a run of them, and the first after it."""


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
    """`encode` batch by batch: the next one is tokenized, in a thread, while the last is laid out."""
    encoder = Encoder.of(tokenizer, add_special_tokens)
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for documents in batches:
            texts = _Texts.of(documents)
            started = (texts, pool.submit(encoder.tokenize, texts))
            if waiting is not None:
                yield encoder.lay_out(waiting[0], waiting[1].result())
            waiting = started
        if waiting is not None:
            yield encoder.lay_out(waiting[0], waiting[1].result())


class _Texts(NamedTuple):
    """Documents as whole texts, and the trained regions of each."""

    texts: list[str]
    regions: list[list[Region]]

    @classmethod
    def of(cls, documents: Sequence[Document]) -> _Texts:
        texts, regions = [], []
        for spans in documents:
            if len(spans) == 1:
                text, trained = spans[0]
                texts.append(text)
                regions.append([(0, len(text))] if trained and text else [])
                continue
            texts.append("".join([span[0] for span in spans]))
            found: list[Region] = []
            end = 0
            for text, trained in spans:
                start, end = end, end + len(text)
                if trained and text:
                    if found and found[-1][1] == start:
                        start = found.pop()[0]
                    found.append((start, end))
            regions.append(found)
        return cls(texts, regions)


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
        texts = _Texts.of(documents)
        return self.lay_out(texts, self.tokenize(texts))

    def tokenize(self, texts: _Texts) -> list[Any]:
        """The encodings of the texts; with offsets only where a border lies inside a text."""
        borders = any(
            start > 0 or end < len(text)
            for text, regions in zip(texts.texts, texts.regions, strict=True)
            for start, end in regions
        )
        work = self.backend.encode_batch if borders else self.backend.encode_batch_fast
        return work(texts.texts, add_special_tokens=self.add_special_tokens)

    def lay_out(self, texts: _Texts, encodings: list[Any]) -> Examples:
        """Ids and labels as flat arrays."""
        import numpy as np

        arrays = [np.array(encoding.ids, np.int32) for encoding in encodings]
        lengths_N = np.fromiter(map(len, arrays), np.int64, len(arrays))
        offsets_N1 = np.concatenate([[0], np.cumsum(lengths_N)])
        ids_S = np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
        trained_S = self._trained(texts, encodings, offsets_N1)
        if self.add_special_tokens:
            ends_trained_N = np.fromiter(
                (bool(r) and r[-1][1] == len(t) for t, r in zip(texts.texts, texts.regions, strict=True)),
                bool,
                len(arrays),
            )
            filled_N = np.fromiter(map(bool, texts.texts), bool, len(arrays))
            ids_S, trained_S, offsets_N1 = self._fix_special_tokens(
                ids_S, trained_S, offsets_N1, ends_trained_N, filled_N
            )
        first_N = offsets_N1[:-1][np.diff(offsets_N1) > 0]
        trained_S[first_N] = False
        return Examples(ids_S, np.where(trained_S, ids_S, np.int32(IGNORE)), offsets_N1)

    def _trained(self, texts: _Texts, encodings: list[Any], offsets_N1: np.ndarray) -> np.ndarray:
        """Which tokens (bool, S) end inside a trained region."""
        import numpy as np

        firsts_R: list[int] = []
        ends_R: list[int] = []
        offsets = offsets_N1.tolist()
        for index, regions in enumerate(texts.regions):
            if not regions:
                continue
            base, size = offsets[index], len(texts.texts[index])
            encoding, whole = encodings[index], max(offsets[index + 1] - offsets[index] - self.suffix, 0)
            for start, end in regions:
                firsts_R.append(base + (_first_ending_after(encoding, start, whole) if start else 0))
                ends_R.append(base + (_first_ending_after(encoding, end, whole) if end < size else whole))
        change = np.bincount(firsts_R, minlength=offsets[-1] + 1) if firsts_R else np.zeros(offsets[-1] + 1, np.int64)
        if ends_R:
            change = change - np.bincount(ends_R, minlength=offsets[-1] + 1)
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


def _first_ending_after(encoding: Any, character: int, tokens: int) -> int:
    """The first token whose last character is at ``character`` or behind it; ``tokens`` where there is none."""
    token = encoding.char_to_token(character)
    if token is not None:
        return token
    # No token covers the character, as where a tokenizer drops white space.
    return next((index for index, (_, end) in enumerate(encoding.offsets) if end > character), tokens)
