# ruff: noqa: N802, N803, N806 (suffixes are shapes)
"""Tokenized texts as flat arrays, with the places of characters among their tokens.

Legend: N texts, S tokens in all of them, M characters that are looked up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


class Tokens(ABC):
    """The tokens of some texts.

    Attributes:
        ids_S: token ids (int32).
        lengths_N: the number of tokens of each text (int64).
        offsets_N1: where the tokens of each text begin, and the end of the last.
        counts: how the texts were tokenized, if an engine did it.
    """

    def __init__(self, ids_S: np.ndarray, lengths_N: np.ndarray) -> None:
        import numpy as np

        self.ids_S, self.lengths_N = ids_S, lengths_N
        self.offsets_N1 = np.concatenate([[0], np.cumsum(lengths_N)])
        self.counts: Counter[str] = Counter()

    def ids_of(self, text: int) -> list[int]:
        """The token ids of one text."""
        ids: list[int] = self.ids_S[self.offsets_N1[text] : self.offsets_N1[text + 1]].tolist()
        return ids

    @abstractmethod
    def first_after(self, texts_M: Sequence[int], characters_M: Sequence[int], none_M: Sequence[int]) -> np.ndarray:
        """The first token that ends after each of these characters, counted in its text.

        Args:
            texts_M: the text of each character.
            characters_M: where it is in its text.
            none_M: the result if no token ends after it.
        """


class EncodedTokens(Tokens):
    """The tokens of encodings of `tokenizers`.

    Args:
        encodings: one for each text, with offsets if characters are looked up.
    """

    def __init__(self, encodings: Sequence[Any]) -> None:
        import numpy as np

        ids = array("i")
        lengths_N = np.empty(len(encodings), np.int64)
        for index, encoding in enumerate(encodings):
            some = encoding.ids
            lengths_N[index] = len(some)
            ids.fromlist(some)
        self._encodings = encodings
        super().__init__(np.frombuffer(ids, np.int32) if ids else np.zeros(0, np.int32), lengths_N)

    def first_after(self, texts_M: Sequence[int], characters_M: Sequence[int], none_M: Sequence[int]) -> np.ndarray:
        """By the offsets of the tokens."""
        import numpy as np

        places = zip(texts_M, characters_M, none_M, strict=True)
        return np.array([token_after(self._encodings[text], at, none) for text, at, none in places], np.int64)


def token_after(encoding: Any, character: int, none: int) -> int:
    """The first token of an encoding that ends after a character; ``none`` if no token does."""
    token = encoding.char_to_token(character)
    if token is None:
        # No token covers the character, for example because the tokenizer drops whitespace.
        ends = enumerate(encoding.offsets)
        token = next((at for at, (_, end) in ends if end > character), none)
    return int(token)


class FlatTokens(Tokens):
    """The tokens of an engine, which knows no offsets: characters are found by the bytes that each token stands for.

    Args:
        ids_S: token ids.
        lengths_N: the number of tokens of each text.
        texts: the texts.

    Attributes:
        ends_S: twice the bytes of all texts up to the end of each token; 0 bytes for texts in ``encodings``. None if
            no character is looked up.
        encodings: encodings of `tokenizers`, by the number of the text, of texts whose bytes are not known.
    """

    def __init__(self, ids_S: np.ndarray, lengths_N: np.ndarray, texts: Sequence[str]) -> None:
        super().__init__(ids_S, lengths_N)
        self._texts = texts
        self.ends_S: np.ndarray | None = None
        self.encodings: dict[int, Any] = {}

    @cached_property
    def _begins_N(self) -> np.ndarray:
        """Twice the bytes before each text."""
        import numpy as np

        assert self.ends_S is not None
        begins_N: np.ndarray = np.concatenate([[0], self.ends_S])[self.offsets_N1[:-1]]
        return begins_N

    def first_after(self, texts_M: Sequence[int], characters_M: Sequence[int], none_M: Sequence[int]) -> np.ndarray:
        """By the bytes up to the character."""
        import numpy as np

        if not len(texts_M):
            return np.zeros(0, np.int64)
        assert self.ends_S is not None, "the characters were not announced"
        texts = self._texts
        places = zip(texts_M, characters_M, strict=True)
        bytes_M = np.array([at if texts[t].isascii() else len(texts[t][:at].encode()) for t, at in places], np.int64)
        owners_M = np.asarray(texts_M, np.int64)
        found_M = np.searchsorted(self.ends_S, self._begins_N[owners_M] + 2 * bytes_M, side="right")
        tokens_M = found_M - self.offsets_N1[owners_M]
        none = np.asarray(none_M, np.int64)
        tokens_M = np.where(tokens_M < self.lengths_N[owners_M], tokens_M, none)
        for index in np.flatnonzero(np.isin(owners_M, list(self.encodings))) if self.encodings else ():
            encoding = self.encodings[int(owners_M[index])]
            tokens_M[index] = token_after(encoding, characters_M[int(index)], none_M[int(index)])
        return tokens_M
