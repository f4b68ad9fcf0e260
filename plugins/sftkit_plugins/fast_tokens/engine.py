"""fastokens as an engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from sftkit.api import Tokenize, TokenizingEngine

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Fastokens(TokenizingEngine):
    """fastokens: BPE, at the level of bytes or of text."""

    required: bool = False

    @property
    def name(self) -> str:
        """With the version."""
        return f"fastokens {metadata.version('fastokens')}"

    def load(self, definition: str) -> Tokenize:
        """From the text, without a pre-tokenizer that fastokens lacks: Llama 2's, which only replaces spaces."""
        import fastokens
        import numpy as np

        before = None
        if '"Metaspace"' in definition:
            parts = json.loads(definition)
            before = _space_in_front(parts)
            definition = json.dumps(parts)
        engine = fastokens.Tokenizer.from_json_str(definition)

        def tokenize(texts: Sequence[str], special: bool) -> tuple[np.ndarray, np.ndarray]:
            if before:
                texts = [text if not text or text.startswith(before) else f" {text}" for text in texts]
            ids, offsets = engine.encode_batch_flat([*texts], special)
            return np.frombuffer(ids, np.uint32), np.diff(np.frombuffer(offsets, np.uint64))

        return tokenize


def _space_in_front(parts: dict[str, Any]) -> tuple[str, ...] | None:
    """Make a normalizer of a pre-tokenizer that writes spaces as a sign and divides nothing.

    Args:
        parts: the ``tokenizer.json``, which is changed.

    Returns:
        What a text may begin with and get no space in front; empty if none gets one. None: nothing was changed.
    """
    step = parts["pre_tokenizer"] or {}
    scheme = step.get("prepend_scheme")
    if step.get("type") != "Metaspace" or step.get("split") or scheme == "always" or parts["normalizer"] is not None:
        return None
    sign = step["replacement"]
    parts["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": sign}
    parts["pre_tokenizer"] = None
    return (" ", sign, *(token["content"] for token in parts["added_tokens"])) if scheme == "first" else ()
