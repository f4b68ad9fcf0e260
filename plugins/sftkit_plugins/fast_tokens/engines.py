"""The two engines."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from sftkit.api import Tokenize, TokenizingEngine

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Tokie(TokenizingEngine):
    """tokie: BPE, WordPiece and Unigram."""

    required: bool = False

    @property
    def name(self) -> str:
        """With the version."""
        return f"tokie {metadata.version('tokie')}"

    def load(self, definition: str) -> Tokenize:
        """From a file, since tokie reads no text."""
        import tokie

        with tempfile.TemporaryDirectory(prefix="sftkit-") as directory:
            path = os.path.join(directory, "tokenizer.json")
            with open(path, "w", encoding="utf-8") as file:
                file.write(definition)
            engine: Any = tokie.Tokenizer.from_json(path)  # its stubs lack a method

        def tokenize(texts: Sequence[str], special: bool) -> tuple[np.ndarray, np.ndarray]:
            return engine.encode_batch_flat([*texts], add_special_tokens=special)

        return tokenize


@dataclass(frozen=True)
class Fastokens(TokenizingEngine):
    """fastokens: byte-level BPE."""

    required: bool = False

    @property
    def name(self) -> str:
        """With the version."""
        return f"fastokens {metadata.version('fastokens')}"

    def load(self, definition: str) -> Tokenize:
        """From the text."""
        import fastokens
        import numpy as np

        engine = fastokens.Tokenizer.from_json_str(definition)

        def tokenize(texts: Sequence[str], special: bool) -> tuple[np.ndarray, np.ndarray]:
            ids, offsets = engine.encode_batch_flat([*texts], special)
            return np.frombuffer(ids, np.uint32), np.diff(np.frombuffer(offsets, np.uint64))

        return tokenize
