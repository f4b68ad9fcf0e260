"""The default loader: tokenizer and causal language model from a directory or the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sftkit.errors import Problem
from sftkit.models.embeddings import grow_embeddings
from sftkit.models.loading import load_model, load_tokenizer, model_problems
from sftkit.plugin.base import Plugin, dataclass, hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sftkit.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class HF(Plugin):
    """Models and tokenizers of transformers, from a directory or the hub (default)."""

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Directories that do not exist or hold no model, and options that have a key of their own."""
        yield from model_problems(config)

    @hookimpl
    def load_tokenizer(self, config: RunConfig) -> PreTrainedTokenizerBase:
        """The tokenizer of ``model.tokenizer``, else of the model; an adapter's own before its base model's."""
        return load_tokenizer(config)

    @hookimpl
    def load_model(self, config: RunConfig, options: Mapping[str, Any]) -> PreTrainedModel:
        """The model with its weights, from safetensors only; an adapter directory gives its base with the adapter."""
        from transformers import AutoModelForCausalLM

        return load_model(config, options, AutoModelForCausalLM)

    @hookimpl
    def resize_embeddings(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new_token_ids: list[int]
    ) -> bool:
        """A row for every token; see `sftkit.models.grow_embeddings`."""
        grow_embeddings(model, tokenizer, new_token_ids)
        return True
