"""The model of a run without its weights: all that it takes to know what it will hold."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.models.adapt import adapted_model
from sftkit.models.adapters import base_of, is_adapter

if TYPE_CHECKING:
    from sftkit.run.stages import PreparedRun


class UnknownMemoryError(Exception):
    """The memory of a run cannot be known before its model is loaded; says why."""


def unloaded_model(prepared: PreparedRun) -> tuple[Any, dict[str, Any] | None]:
    """The model to train, adapted and with a row for each token, on the meta device; and how it is quantized.

    Raises:
        UnknownMemoryError: if its configuration is not here.
    """
    import torch

    with torch.device("meta"):
        if prepared.model is not None:
            model = without_weights(prepared.model)
            quantization = None
        else:
            model, quantization = _from_configuration(prepared)
        tokens, rows = len(prepared.tokenizer), model.get_input_embeddings().weight.shape[0]
        new = sorted({*prepared.vocabulary.new_token_ids, *range(rows, tokens)})
        if tokens > rows:
            model.resize_token_embeddings(tokens, mean_resizing=False)
        return adapted_model(model, prepared.config, prepared.plugins, new), quantization


def without_weights(model: Any) -> Any:
    """A copy of a loaded model, on the meta device."""
    import torch

    memo: dict[int, Any] = {}
    for value in (*model.parameters(), *model.buffers()):
        made = torch.empty_like(value, device="meta")
        trained = isinstance(value, torch.nn.Parameter)
        memo[id(value)] = torch.nn.Parameter(made, requires_grad=value.requires_grad) if trained else made
    return copy.deepcopy(model, memo)


def model_config(name: str, trust_remote_code: bool = False) -> Any:
    """A model's configuration, read without its weights; None where ``name`` is no local directory."""
    path = Path(name)
    if not (path / "config.json").is_file():
        return None
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError):
        return None


def auto_class(prepared: PreparedRun) -> Any:
    """The class of transformers that makes the run's model from its configuration."""
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    return AutoModelForCausalLM if prepared.vocabulary.processor is None else AutoModelForMultimodalLM


def _from_configuration(prepared: PreparedRun) -> tuple[Any, dict[str, Any] | None]:
    import torch

    section = prepared.config.model
    name, _ = base_of(section.name)
    config = model_config(name, section.trust_remote_code)
    if config is None:
        raise UnknownMemoryError(f"there is no configuration of {name!r} here")
    options = {**section.options, **prepared.plugins.model_options(prepared.config)}
    quantization = options.get("quantization_config") or getattr(config, "quantization_config", None)
    wanted = config.dtype or "float32" if section.dtype == "auto" else section.dtype
    model = auto_class(prepared).from_config(
        config,
        dtype=getattr(torch, wanted) if isinstance(wanted, str) else wanted,
        trust_remote_code=section.trust_remote_code,
        **{name: options[name] for name in ("attn_implementation",) if name in options},
    )
    if quantization is not None:
        model.config.quantization_config = quantization  # where plugins look for it
        quantization = quantization if isinstance(quantization, dict) else quantization.to_dict()
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings():
                module.weight.requires_grad_(False)
    if is_adapter(section.name):
        model = prepared.plugins.hook.attach_adapter(model=model, config=prepared.config)
    return model, quantization
