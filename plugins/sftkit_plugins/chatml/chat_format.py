"""The ChatML format for a loaded model and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftkit.api import grow_embeddings
from sftkit_plugins.chatml import TEMPLATES, template_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class ChatMlSpecialTokens:
    """The special tokens of ChatML, and the text written with them."""

    bos_token: str = "<|im_start|>"
    eos_token: str = "<|im_end|>"
    pad_token: str = "<|im_end|>"

    @property
    def system(self) -> str:
        """The start of a system message."""
        return f"{self.bos_token}system"

    @property
    def user(self) -> str:
        """The start of a user message."""
        return f"{self.bos_token}user"

    @property
    def assistant(self) -> str:
        """The start of an assistant message."""
        return f"{self.bos_token}assistant"

    @property
    def chat_template(self) -> str:
        """The plugin's template ``chatml`` with these tokens."""
        text = template_file("chatml").read_text(encoding="utf-8")
        start, end = TEMPLATES["chatml"]
        return text.replace(start, self.bos_token).replace(end, self.eos_token)


FORMAT_MAPPING = {"chatml": ChatMlSpecialTokens}


def setup_chat_format(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    format: str = "chatml",
    resize_to_multiple_of: int | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Set the chat format of a tokenizer, and give its model a row for each new token. Changes both.

    A chat template that the tokenizer has is replaced, and with it BOS, EOS and padding.

    EOS and padding become the same token, as the format defines: a trainer that recognises padding by its id then never
    teaches the model to stop. Plugin chatml keeps them apart.

    Args:
        model: the model, without an adapter.
        tokenizer: its tokenizer.
        format: one of `FORMAT_MAPPING`.
        resize_to_multiple_of: round the number of embedding rows up to a multiple of this.

    Returns:
        The same model and tokenizer.

    Raises:
        ValueError: if there is no such format.
        ConfigError: if the model has an adapter, which would leave the new rows untrained.

    Source: the function of this name in TRL 0.11; new rows are made by `sftkit.api.grow_embeddings`.
    """
    if format not in FORMAT_MAPPING:
        raise ValueError(f"Format {format} not available. Please use one of {', '.join(FORMAT_MAPPING)}.")
    chosen = FORMAT_MAPPING[format]()
    before = len(tokenizer)
    named = {"bos_token": chosen.bos_token, "eos_token": chosen.eos_token, "pad_token": chosen.pad_token}
    further = {"extra_special_tokens": [chosen.bos_token, chosen.eos_token]}
    tokenizer.add_special_tokens(named | further, replace_extra_special_tokens=False)
    tokenizer.chat_template = chosen.chat_template
    grow_embeddings(model, tokenizer, list(range(before, len(tokenizer))), resize_to_multiple_of)
    for settings in (model.config, getattr(model, "generation_config", None)):
        for name in named if settings is not None else ():
            setattr(settings, f"{name}_id", getattr(tokenizer, f"{name}_id"))
    return model, tokenizer
