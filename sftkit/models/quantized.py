"""The model to train: a base that holds its weights in few bits is prepared, and then adapted."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sftkit.errors import ConfigError, Problem

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.plugin.registry import PluginSet

ADAPTER = "select a plugin that puts an adapter on it, as in -p peft"
CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")


def adapted_model(model: Any, config: RunConfig, plugins: PluginSet, new_token_ids: list[int]) -> Any:
    """The model as the plugins adapt it; a base that bitsandbytes holds in few bits is prepared before. Changes it.

    A plugin that both loads and adapts a model prepares it in its own way.

    Raises:
        ConfigError: if weights in few bits are left without an adapter, or cannot be trained on.
    """
    own_way = not config.model.loaded and plugins.fillers("load_model") & plugins.fillers("adapt_model")
    if bits_of(quantization_settings(model)) is not None and not own_way:
        prepare_quantized(model, config)
    adapted = plugins.hook.adapt_model(model=model, config=config, new_token_ids=new_token_ids)
    adapted = model if adapted is None else adapted
    if problem := needs_adapter(adapted):
        raise ConfigError(problem)
    return adapted


def needs_adapter(model: Any) -> Problem | None:
    """The problem with a quantized model that has no adapter; such weights cannot be trained themselves."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None or hasattr(model, "peft_config") or getattr(quantizer, "is_qat_trainable", False):
        return None
    return Problem("weights in so few bits cannot be trained themselves, and there is no adapter", "model", ADAPTER)


def quantization_settings(model: Any) -> dict[str, Any]:
    """How a model is quantized, as its configuration tells; empty where it is not."""
    settings = getattr(getattr(model, "config", None), "quantization_config", None) or {}
    return dict(settings if isinstance(settings, dict) else settings.to_dict())


def bits_of(settings: Mapping[str, Any]) -> int | None:
    """The bits that settings of bitsandbytes say; None for those of others."""
    return next((bits for bits in (4, 8) if settings.get(f"load_in_{bits}bit")), None)


def prepare_quantized(model: Any, config: RunConfig) -> None:
    """Makes a base that bitsandbytes holds in few bits fit to train an adapter on. Changes the model.

    The base is frozen, and what is not quantized becomes float32; an adapter that is there stays trainable. Where
    activations are checkpointed, the embeddings' outputs get gradients, since reentrant checkpoints need them.

    Raises:
        ConfigError: without peft, or if the output head is quantized, or weights were repacked for inference.
    """
    try:
        from peft import prepare_model_for_kbit_training
    except ImportError as error:
        what = "weights in so few bits are trained by an adapter, and peft is not installed"
        raise ConfigError(Problem(what, "model", 'pip install "sftkit[peft]"')) from error
    head = model.get_output_embeddings()
    if head is not None and type(head.weight).__name__ in ("Params4bit", "Int8Params"):
        what = "the output head is quantized, and the loss needs it whole"
        raise ConfigError(Problem(what, "model", "add its name to llm_int8_skip_modules or skip_modules"))
    _keep_unpacked(model)
    _tell(model)
    trained = [weight for weight in model.parameters() if weight.requires_grad] if hasattr(model, "peft_config") else []
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    for weight in trained:
        weight.requires_grad = True
    if any(config.train.get(key) for key in CHECKPOINTING):
        base.enable_input_require_grads()


def _keep_unpacked(model: Any) -> None:
    """Keeps 4-bit weights in the layout that the backward reads. Changes the model's layers.

    On a CPU with AVX512-BF16 a forward in eval mode without gradients repacks them for inference, and every later
    backward takes them for what they were: gradients are wrong by up to 80 %.

    Raises:
        ConfigError: if that has happened already; the scales are rounded then, and bitsandbytes cannot undo it.
    """
    for module in model.modules():
        weight: Any = getattr(module, "weight", None)
        if type(weight).__name__ != "Params4bit":
            continue
        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            what = "the model was evaluated on this CPU, which repacked its weights so that gradients would be wrong"
            fix = "load it anew, and set support_avx512bf16_for_cpu = False on its Linear4bit layers at once"
            raise ConfigError(Problem(what, "model", fix))
        module.support_avx512bf16_for_cpu = False


def _tell(model: Any) -> None:
    settings = quantization_settings(model)
    bits = bits_of(settings)
    kind = f", {settings['bnb_4bit_quant_type']}" if bits == 4 else ""
    kept = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()})
    told = "bitsandbytes: %s bits%s; other weights were %s and become float32"
    logging.getLogger("sftkit").info(told, bits, kind, ", ".join(kept))
