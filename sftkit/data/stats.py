# ruff: noqa: N803, N806 (suffixes are shapes)
"""Statistics of encoded examples, before they are cut or packed; computed batch by batch.

Legend: N examples, M some of them, S tokens in all of them, K trained special tokens, L lengths up to `LONGEST`.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sftkit.data.columns import Examples

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

LONGEST = 1 << 16  # longer examples are counted as this long
_CACHED = 1 << 15  # tokens to hash at once
_FACTOR = 0x9E3779B97F4A7C15  # odd, so multiplying by it is invertible; derived from the golden ratio, as in splitmix64


@dataclass
class DatasetStats:
    """Statistics over batches of examples.

    Attributes:
        rows: number of examples.
        tokens: number of tokens.
        trained: number of trained tokens.
        longest: number of tokens in the longest example.
        ends: number of examples by the id (as text) of their last trained special token, such as EOS.
        ended_twice: number of examples in which this token is trained twice in succession.
        rendered: number of examples whose text had its special tokens already, as that of a chat template has.
        bos_doubled: number of examples that begin with two BOS tokens.
        without_bos: number of examples that do not begin with BOS; 0 if the tokenizer has none.
        duplicates: number of examples that are equal to an earlier one.
        lengths: number of examples by length, rounded up to a power of two: 1, 2, 4, 8 and so on.
        percentiles: the length in tokens at the 50th, 95th and 99th percentile.
    """

    rows: int = 0
    tokens: int = 0
    trained: int = 0
    longest: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    ended_twice: int = 0
    rendered: int = 0
    bos_doubled: int = 0
    without_bos: int = 0
    duplicates: int = 0
    lengths: dict[str, int] = field(default_factory=dict)
    percentiles: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._counts_L: Any = None
        self._hashes: list[np.ndarray] = []

    def add(
        self, examples: Examples, bos: int | None, eos: int | None, special: Collection[int], rendered: bool
    ) -> None:
        """Add a batch.

        Args:
            examples: the batch.
            bos: id of the tokenizer's BOS token, if it has one.
            eos: id of its EOS token, if it has one.
            special: ids of all its special and added tokens.
            rendered: whether the texts had their special tokens already.
        """
        import numpy as np

        ids_S, labels_S, offsets_N1 = examples.ids_S, examples.labels_S, examples.offsets_N1
        lengths_N = examples.lengths_N
        filled_N = lengths_N > 0
        starts_N, lasts_N = offsets_N1[:-1][filled_N], offsets_N1[1:][filled_N] - 1
        self.rows += len(lengths_N)
        self.tokens += len(ids_S)
        self.trained += int(examples.trained_N.sum())
        self.longest = max(self.longest, int(lengths_N.max(initial=0)))
        self.rendered += len(lengths_N) if rendered else 0
        self._add_ends(ids_S, labels_S, offsets_N1, special)
        if bos is not None and bos != eos:
            self.without_bos += int((ids_S[starts_N] != bos).sum())
            longer = starts_N[lasts_N > starts_N]
            self.bos_doubled += int(((ids_S[longer] == bos) & (ids_S[longer + 1] == bos)).sum())
        counts_L = np.bincount(np.minimum(lengths_N, LONGEST), minlength=LONGEST + 1)
        self._counts_L = counts_L if self._counts_L is None else self._counts_L + counts_L
        self._hashes.append(hash_documents(ids_S, offsets_N1, examples.attached_N))

    def merge(self, later: DatasetStats) -> None:
        """Add those of later batches."""
        import numpy as np

        for name in ("rows", "tokens", "trained", "ended_twice", "rendered", "bos_doubled", "without_bos"):
            setattr(self, name, getattr(self, name) + getattr(later, name))
        self.longest = max(self.longest, later.longest)
        for token, number in later.ends.items():
            self.ends[token] = self.ends.get(token, 0) + number
        if later._counts_L is not None:
            zero = np.zeros(LONGEST + 1, np.int64)
            self._counts_L = (zero if self._counts_L is None else self._counts_L) + later._counts_L
        self._hashes += later._hashes

    def _add_ends(
        self, ids_S: np.ndarray, labels_S: np.ndarray, offsets_N1: np.ndarray, special: Collection[int]
    ) -> None:
        import numpy as np

        place_K = np.flatnonzero(np.isin(labels_S, np.fromiter(special, np.int64, len(special))))
        last_N = np.full(len(offsets_N1) - 1, -1)
        last_N[np.searchsorted(offsets_N1, place_K, side="right") - 1] = place_K  # the last one of each row stays
        last_M = last_N[last_N >= 0]
        for token, number in zip(*np.unique(ids_S[last_M], return_counts=True), strict=True):
            self.ends[str(token)] = self.ends.get(str(token), 0) + int(number)
        # the first token of a row is never trained, so the token before a trained one belongs to the same row
        self.ended_twice += int((labels_S[last_M] == labels_S[last_M - 1]).sum())

    def as_dict(self) -> dict[str, Any]:
        """The statistics as plain data."""
        import numpy as np

        if self._counts_L is not None:
            self.duplicates = self.rows - len(np.unique(np.concatenate(self._hashes)))
            self.lengths = _by_power_of_two(self._counts_L)
            running = np.cumsum(self._counts_L)
            ranks = {f"p{percent}": self.rows * percent / 100 for percent in (50, 95, 99)}
            self.percentiles = {name: int(np.searchsorted(running, rank)) for name, rank in ranks.items()}
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DatasetStats:
        """Statistics from plain data; batches cannot be added to them."""
        return cls(**values)


def hash_documents(ids_S: np.ndarray, offsets_N1: np.ndarray, attached_N: pa.Array | None = None) -> np.ndarray:
    """A 64-bit hash of each example (uint64, N): a polynomial of its ids in an odd constant, plus its attachment."""
    import numpy as np

    lengths_N = np.diff(offsets_N1)
    hashes_N = lengths_N.astype(np.uint64)
    if attached_N is not None:
        hashes_N += _hashes_of(attached_N)
    if not len(ids_S):
        return hashes_N
    powers = np.multiply.accumulate(np.full(int(lengths_N.max()), _FACTOR, np.uint64))
    low = 0
    while low < len(lengths_N):  # some documents at a time, whose numbers stay in the processor's cache
        high = max(int(np.searchsorted(offsets_N1, offsets_N1[low] + _CACHED, side="right")) - 1, low + 1)
        first, end = offsets_N1[low], offsets_N1[high]
        hashes_N[low:high] += _polynomials(ids_S[first:end], offsets_N1[low:high] - first, lengths_N[low:high], powers)
        low = high
    return hashes_N


def _polynomials(ids_S: np.ndarray, starts_N: np.ndarray, lengths_N: np.ndarray, powers: np.ndarray) -> np.ndarray:
    import numpy as np

    sums_N = np.zeros(len(lengths_N), np.uint64)
    filled_N = lengths_N > 0
    if not filled_N.any():
        return sums_N
    place_S = np.arange(len(ids_S))
    place_S -= np.repeat(starts_N, lengths_N)
    mixed_S = ids_S.astype(np.uint64)
    mixed_S += np.uint64(1)
    mixed_S *= np.uint64(0xBF58476D1CE4E5B9)
    mixed_S ^= mixed_S >> np.uint64(31)
    mixed_S *= powers[place_S]
    sums_N[filled_N] = np.add.reduceat(mixed_S, starts_N[filled_N])
    return sums_N


def _hashes_of(attached_N: pa.Array) -> np.ndarray:
    import numpy as np
    import xxhash

    values = (xxhash.xxh3_64_intdigest(pickle.dumps(value.as_py())) for value in attached_N)
    return np.fromiter(values, np.uint64, len(attached_N))


def _by_power_of_two(counts_L: np.ndarray) -> dict[str, int]:
    import numpy as np

    found: dict[str, int] = {}
    low, high = 0, 1
    while low <= LONGEST:
        number = int(np.sum(counts_L[low : high + 1]))
        if number:
            found[str(high)] = number
        low, high = high + 1, high * 2
    return found
