"""From a loaded base model to the model that is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sftkit.errors import ConfigError, Problem
from sftkit.models.choices import Choices
from sftkit.models.inspect import computes_logits, has_adapter
from sftkit.models.precision import precision_problems
from sftkit.models.quantized import quantization_settings

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet

NEEDS_ADAPTER = "quantized weights cannot be trained; add an adapter"
ADAPTER_FIX = "select a plugin that adds an adapter; `sftkit plugins` lists what is installed"


def adapted_model(
    model: Any, config: RunConfig, plugins: PluginSet, new_token_ids: list[int], choices: Choices | None = None
) -> Any:
    """The model as the plugins prepare and adapt it. Changes the model.

    Raises:
        ConfigError: if a plugin cannot train it, it is quantized and has no adapter, or its weights do not fit the
            mixed precision.
    """
    plugins.hook.prepare_base(model=model, config=config)
    known = {"new_token_ids": new_token_ids, "choices": choices or Choices()}
    adapted = plugins.hook.adapt_model(model=model, config=config, **known)
    adapted = model if adapted is None else adapted
    if adapted is not model and computes_logits(model) and not computes_logits(adapted):
        what = f"it returns an object of type {type(adapted).__name__}, which computes no logits"
        raise ConfigError(Problem(what, plugins.responsible("adapt_model"), "return the model, adapted"))
    problems = [*precision_problems(config, adapted)]
    if problem := needs_adapter(adapted) or nothing_trained(adapted):
        adapts = plugins.first_filler("adapt_model")
        problems.append(replace(problem, where=plugins.responsible("adapt_model")) if adapts else problem)
    if problems:
        raise ConfigError(problems)
    return adapted


def loaded_model_problems(model: Any, adapting: list[str]) -> list[Problem]:
    """Why a loaded model cannot be trained: a second adapter, or no weights to train.

    Args:
        model: the model as it was passed.
        adapting: names of the plugins that would adapt it.
    """
    if has_adapter(model) and adapting:
        what = f"the model already has an adapter, and plugin {adapting[0]} would add a second one"
        return [Problem(what, "model", f"drop plugin {adapting[0]} to train the adapter further")]
    if adapting:
        return []
    if problem := needs_adapter(model):
        return [problem]
    problem = nothing_trained(model)
    return [problem] if problem else []


def nothing_trained(model: Any) -> Problem | None:
    """The problem with a model that has no weights to train; None if there is none."""
    weights = list(model.parameters()) if hasattr(model, "parameters") else []
    if not weights or any(weight.requires_grad for weight in weights):
        return None
    if not has_adapter(model) and quantization_settings(model):
        return Problem(NEEDS_ADAPTER, "model", ADAPTER_FIX)
    kind = "its adapter is loaded for inference" if has_adapter(model) else "every weight has requires_grad False"
    loaded = "load the adapter with is_trainable=True" if has_adapter(model) else "set requires_grad of weights"
    return Problem(f"nothing of the model can be trained: {kind}", "model", f"{loaded}, or add an adapter")


def needs_adapter(model: Any) -> Problem | None:
    """The problem with a quantized model that has no adapter; None if there is none."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None or has_adapter(model) or getattr(quantizer, "is_qat_trainable", False):
        return None
    return Problem(NEEDS_ADAPTER, "model", ADAPTER_FIX)
