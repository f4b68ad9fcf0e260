"""The tokenizer of the library `tokenizers` that a tokenizer of transformers wraps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Any:
    """It, without what calls of the tokenizer may have left: truncation, padding, and how special tokens are read."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend
