"""From a loaded base model to the model that is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sftkit.errors import ConfigError, Problem
from sftkit.models.inspect import has_adapter

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet

NEEDS_ADAPTER = "quantized weights cannot be trained; add an adapter"


def adapted_model(model: Any, config: RunConfig, plugins: PluginSet, new_token_ids: list[int]) -> Any:
    """The model as the plugins prepare and adapt it. Changes the model.

    Raises:
        ConfigError: if a plugin cannot train it, or it is quantized and has no adapter.
    """
    plugins.hook.prepare_base(model=model, config=config)
    adapted = plugins.hook.adapt_model(model=model, config=config, new_token_ids=new_token_ids)
    adapted = model if adapted is None else adapted
    if problem := needs_adapter(adapted):
        raise ConfigError(problem)
    return adapted


def needs_adapter(model: Any) -> Problem | None:
    """The problem with a quantized model that has no adapter; None if there is none."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None or has_adapter(model) or getattr(quantizer, "is_qat_trainable", False):
        return None
    fix = "select a plugin that adds an adapter; `sftkit plugins` lists what is installed"
    return Problem(NEEDS_ADAPTER, "model", fix)
