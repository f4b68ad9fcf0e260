# ruff: noqa: N806 (suffixes are shapes)
"""The digests of all rows so far, in 16 bytes each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BYTES = 12  # of a digest: with 96 bits, two of a billion rows have the same one with a probability of 1e-11


class SeenDigests:
    """Finds the first row with a digest.

    Digests lie in sorted blocks, with the number of the first row of each. Of two blocks the earlier one is at least
    twice as large, so that there are few of them, and each digest is merged into another block only so often.

    Attributes:
        number: how many rows were added.
    """

    def __init__(self) -> None:
        self.number = 0
        self._blocks: list[tuple[Any, Any]] = []

    @property
    def nbytes(self) -> int:
        """The memory that the digests take."""
        return sum(digests.nbytes + rows.nbytes for digests, rows in self._blocks)

    def add(self, digests: Sequence[bytes]) -> list[int | None]:
        """Add rows; returns the number of the first row with the same digest, or None where there is none before it."""
        import numpy as np

        made_N = np.array([digest[:BYTES] for digest in digests], f"S{BYTES}")
        first_N = np.full(len(made_N), -1)
        for block, rows in self._blocks:
            at_N = np.minimum(np.searchsorted(block, made_N), len(block) - 1)
            first_N = np.where(block[at_N] == made_N, rows[at_N], first_N)
        new: dict[bytes, int] = {}
        found: list[int | None] = []
        for number, (digest, first) in enumerate(zip(made_N.tolist(), first_N.tolist(), strict=True), self.number):
            known = first if first >= 0 else new.setdefault(digest, number)
            found.append(known if known != number else None)
        self.number += len(made_N)
        if new:
            self._append(np.array(list(new), f"S{BYTES}"), np.fromiter(new.values(), np.uint32, len(new)))
        return found

    def _append(self, digests: Any, rows: Any) -> None:
        import numpy as np

        while self._blocks and len(self._blocks[-1][0]) < 2 * len(digests):
            earlier = self._blocks.pop()
            digests, rows = np.concatenate([earlier[0], digests]), np.concatenate([earlier[1], rows])
        order = np.argsort(digests, kind="stable")
        self._blocks.append((digests[order], rows[order]))
