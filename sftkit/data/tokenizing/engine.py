"""The contract of an engine that tokenizes faster than `tokenizers`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np

Tokenize: TypeAlias = "Callable[[Sequence[str], bool], tuple[np.ndarray, np.ndarray]]"
"""Texts, and whether to add special tokens, to the ids of all texts one after another, and the number of each."""


class TokenizingEngine(ABC):
    """Makes the same token ids as `tokenizers`, faster. It can be pickled.

    A run compares it with `tokenizers` before it uses it, and while it uses it; see ``docs/plugins/fast_tokens.md``.

    Attributes:
        required: whether a run fails if the engine cannot be used, or gives other tokens; otherwise this is reported,
            and `tokenizers` does the work.
    """

    required: bool = False

    @property
    @abstractmethod
    def name(self) -> str:
        """The engine and its version, such as ``fastokens 0.3.5``: a proof holds for both."""

    @abstractmethod
    def load(self, definition: str) -> Tokenize:
        """The function that tokenizes; it is called in several threads, and neither truncates nor pads.

        Args:
            definition: the tokenizer, as the text of its ``tokenizer.json``.

        Raises:
            Exception: any, for a tokenizer that the engine does not support; the message becomes the reason.
        """
