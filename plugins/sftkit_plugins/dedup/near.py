# ruff: noqa: N803, N806 (suffixes are shapes)
"""Rows that are similar to an earlier one: MinHash proposes pairs, and their n-grams are compared."""

from __future__ import annotations

from typing import Any

from sftkit.api import hash_ngrams, texts_of, words_of

#: Of the two errors of the index, only a pair that it misses is one of the result: all that it proposes are compared.
WEIGHTS = (0.01, 0.99)  # of pairs that are proposed in vain, and of pairs that are missed


class NearDuplicates:
    """Finds an earlier row with a similar text: the Jaccard similarity of the sets of their n-grams of words.

    Args:
        threshold: the least similarity.
        n: words of an n-gram.
        permutations: permutations of MinHash.
    """

    def __init__(self, threshold: float, n: int, permutations: int) -> None:
        from datasketch import MinHash, MinHashLSH

        self._threshold, self._n = threshold, n
        self._signature = MinHash(permutations, hashfunc=int)
        self._index = MinHashLSH(threshold, permutations, weights=WEIGHTS)
        self._ngrams: dict[int, Any] = {}  # of each row that was kept

    def add(self, number: int, row: Any) -> tuple[int, float] | None:
        """Add a row, unless it is similar to an earlier one; returns the first such row and how similar it is.

        Args:
            number: of the row.
            row: its values, at any depth.
        """
        import numpy as np

        words = [word for text in texts_of(row) for word in words_of(text)]
        if not words:
            return None
        hashes_G = hash_ngrams(words, min(self._n, len(words)))
        ngrams_M = np.unique((hashes_G >> np.uint64(32)).astype(np.uint32))
        self._signature.clear()
        self._signature.update_batch(ngrams_M.tolist())
        for earlier in sorted(self._index.query(self._signature)):
            share = _similarity(ngrams_M, self._ngrams[earlier])
            if share >= self._threshold:
                return earlier, share
        self._index.insert(number, self._signature, check_duplication=False)
        self._ngrams[number] = ngrams_M
        return None


def _similarity(one_M: Any, other_M: Any) -> float:
    import numpy as np

    common = len(np.intersect1d(one_M, other_M, assume_unique=True))
    return common / (len(one_M) + len(other_M) - common)
