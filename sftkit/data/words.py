# ruff: noqa: N806 (suffixes are shapes)
"""The columns and words of rows, for plugins that compare rows by their text.

Legend: W words of some texts, G n-grams of them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sftkit.errors import DataError, Problem, nearest

if TYPE_CHECKING:
    import numpy as np

#: Characters of scripts without spaces between words, each of which counts as a word: Thai, Lao, kana, Chinese.
_ALONE = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_ALONE}]|[^\\W_{_ALONE}]+")
_FACTOR = 0x9E3779B97F4A7C15  # odd, from the golden ratio, as in splitmix64


def chosen_columns(columns: Collection[str], names: Sequence[str] | None, where: str) -> list[str]:
    """The columns that an option of a plugin names; with None, all of them.

    Args:
        columns: the columns of some rows, or of all data.
        names: the value of the option.
        where: the option, for errors.

    Raises:
        DataError: if there is no such column.
    """
    for name in names or ():
        if name not in columns:
            fix = nearest(name, columns) or f"the columns are: {', '.join(columns)}"
            raise DataError(Problem(f"the training data, or a source of it, has no column {name!r}", where, fix))
    return list(columns if names is None else names)


def texts_of(value: Any) -> Iterator[str]:
    """The texts in a value at any depth, such as those of messages; keys are left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from texts_of(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_of(inner)


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; of scripts without spaces, each character."""
    return _WORD.findall(text.lower())


def hash_ngrams(words: Sequence[str], n: int) -> np.ndarray:
    """A 64-bit hash of each run of ``n`` words (uint64, G = W - n + 1); empty if there are fewer words."""
    import numpy as np

    number = len(words) - n + 1
    if number <= 0:
        return np.zeros(0, np.uint64)
    hashes_W = np.fromiter(map(_hash_word, words), np.uint64, len(words))
    hashes_G = np.zeros(number, np.uint64)
    for at in range(n):
        hashes_G *= np.uint64(_FACTOR)
        hashes_G += hashes_W[at : at + number]
    return hashes_G


@functools.lru_cache(maxsize=1 << 18)
def _hash_word(word: str) -> int:
    import xxhash

    return xxhash.xxh3_64_intdigest(word.encode())
