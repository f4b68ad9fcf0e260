"""A pseudo-random order of many numbers that is computed where it is needed, and takes no memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
_Digits = npt.NDArray[np.uint64]

ROUNDS = 12
_HALF = np.uint64(32)


class Permutation:
    """A pseudo-random permutation of the numbers from 0 up to ``size``.

    A number is split into two digits, ``left * width + right``. In a Feistel network of modular additions, each round
    adds a hash of one digit to the other, which can be undone; a result that is not below ``size`` is permuted again
    until it is (Black and Rogaway, *Ciphers with Arbitrary Finite Domains*, 2002). There are fewer than
    ``sqrt(size)`` such results.

    Args:
        size: how many numbers there are, up to 2**62.
        key: numbers of at least 0 that choose the permutation, such as a seed and an epoch.
    """

    def __init__(self, size: int, key: Sequence[int]) -> None:
        self.size = size
        self._height = math.isqrt(max(size - 1, 0)) + 1
        self._width = -(-size // self._height)
        self._keys = np.random.SeedSequence(list(key)).generate_state(ROUNDS, np.uint64)

    def at(self, positions: npt.ArrayLike) -> Numbers:
        """The numbers at these positions of the order."""
        return self._within(positions, self._forward)

    def positions(self, numbers: npt.ArrayLike) -> Numbers:
        """The positions of these numbers, the inverse of `at`."""
        return self._within(numbers, self._backward)

    def _within(self, values: npt.ArrayLike, permute: Callable[[_Digits], _Digits]) -> Numbers:
        result = permute(np.asarray(values).astype(np.uint64))
        while len(outside := np.flatnonzero(result >= self.size)):
            result[outside] = permute(result[outside])
        return result.astype(np.int64)

    def _forward(self, values: _Digits) -> _Digits:
        left, right = np.divmod(values, np.uint64(self._width))
        for number, key in enumerate(self._keys):
            if number % 2:
                right = _added(right, _hashed(left, key, self._width), self._width)
            else:
                left = _added(left, _hashed(right, key, self._height), self._height)
        return left * np.uint64(self._width) + right

    def _backward(self, values: _Digits) -> _Digits:
        left, right = np.divmod(values, np.uint64(self._width))
        for number, key in reversed(list(enumerate(self._keys))):
            if number % 2:
                right = _added(right, np.uint64(self._width) - _hashed(left, key, self._width), self._width)
            else:
                left = _added(left, np.uint64(self._height) - _hashed(right, key, self._height), self._height)
        return left * np.uint64(self._width) + right


def _added(digit: _Digits, other: _Digits, base: int) -> _Digits:
    """The sum of two digits modulo their base; the second one may be equal to the base."""
    total = digit + other
    total -= np.uint64(base) * (total >= np.uint64(base))
    return total


def _hashed(digit: _Digits, key: np.uint64, below: int) -> _Digits:
    """A pseudo-random number below ``below`` for each digit.

    The finalizer of SplitMix64 (Steele, Lea and Flood, *Fast Splittable Pseudorandom Number Generators*, 2014), and
    its upper half times ``below``.
    """
    mixed = digit + key  # modulo 2**64, as the products
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return ((mixed >> _HALF) * np.uint64(below)) >> _HALF
