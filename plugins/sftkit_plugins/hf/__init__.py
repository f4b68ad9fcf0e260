"""The default loader: tokenizer and causal language model from a directory or the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sftkit.api import (
    Plugin,
    Problem,
    dataclass,
    grow_embeddings,
    hookimpl,
    load_model,
    load_tokenizer,
    model_problems,
    quantization_settings,
)
from sftkit_plugins.hf.adapters import adapter_problems, with_adapter
from sftkit_plugins.hf.merging import merged
from sftkit_plugins.hf.quantized import bits_of, prepare_quantized

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sftkit.api import RunConfig


@dataclass(frozen=True, kw_only=True)
class HF(Plugin):
    """Loads models, adapters and tokenizers with transformers, from a directory or the hub (default)."""

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Directories that do not exist or hold no model, and options that are keys of the section ``model``."""
        yield from model_problems(config)
        yield from adapter_problems(config)

    @hookimpl
    def load_tokenizer(self, config: RunConfig) -> PreTrainedTokenizerBase:
        """The tokenizer of ``model.tokenizer``, else of the model; an adapter's own overrides its base model's."""
        return load_tokenizer(config)

    @hookimpl
    def load_model(self, config: RunConfig, options: Mapping[str, Any]) -> PreTrainedModel:
        """The model with its weights, from safetensors only."""
        from transformers import AutoModelForCausalLM

        return load_model(config, options, AutoModelForCausalLM)

    @hookimpl
    def attach_adapter(self, model: PreTrainedModel, config: RunConfig) -> Any:
        """The model with the adapter of ``model.name``, to train it further."""
        return with_adapter(model, config)

    @hookimpl
    def resize_embeddings(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new_token_ids: list[int]
    ) -> bool:
        """A row for every token; see `sftkit.api.grow_embeddings`."""
        grow_embeddings(model, tokenizer, new_token_ids)
        return True

    @hookimpl
    def prepare_base(self, model: PreTrainedModel, config: RunConfig) -> bool | None:
        """Prepares a base that bitsandbytes quantized for an adapter, even if it was loaded before the run."""
        if bits_of(quantization_settings(model)) is None:
            return None
        prepare_quantized(model, config)
        return True

    @hookimpl
    def merge_adapter(self, model: Any, config: RunConfig) -> PreTrainedModel:
        """The base model with the adapter merged into its weights."""
        return merged(model, config.model.name)
