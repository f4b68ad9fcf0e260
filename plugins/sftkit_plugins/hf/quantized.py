"""Base models that bitsandbytes quantized, made ready for an adapter."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sftkit.api import CHECKPOINTING_KEYS, ConfigError, Problem, base_model, quantization_settings

if TYPE_CHECKING:
    from sftkit.api import RunConfig


def bits_of(settings: Mapping[str, Any]) -> int | None:
    """The bits in settings of bitsandbytes; None for other settings."""
    return next((bits for bits in (4, 8) if settings.get(f"load_in_{bits}bit")), None)


def prepare_quantized(model: Any, config: RunConfig) -> None:
    """Make a base that bitsandbytes quantized ready for an adapter. Changes the model.

    The base is frozen, and what is not quantized becomes float32; an adapter that is there stays trainable. Where
    activations are checkpointed, the embeddings' outputs get gradients, since reentrant checkpoints need them.

    Raises:
        ConfigError: without peft, or if the output head is quantized, or weights were repacked for inference.
    """
    try:
        from peft import prepare_model_for_kbit_training
    except ImportError as error:
        what = "quantized weights cannot be trained without an adapter, and peft is not installed"
        raise ConfigError(Problem(what, "model", 'pip install "peft>=0.18"')) from error
    head = model.get_output_embeddings()
    if head is not None and type(head.weight).__name__ in ("Params4bit", "Int8Params"):
        what = "the output head is quantized, and the loss needs it whole"
        raise ConfigError(Problem(what, "model", "add its name to llm_int8_skip_modules or skip_modules"))
    _keep_unpacked(model)
    _report(model)
    trained = [weight for weight in model.parameters() if weight.requires_grad] if hasattr(model, "peft_config") else []
    base = base_model(model)
    prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    for weight in trained:
        weight.requires_grad = True
    if any(config.train.get(key) for key in CHECKPOINTING_KEYS):
        base.enable_input_require_grads()


def _keep_unpacked(model: Any) -> None:
    """Keep 4-bit weights in the layout that the backward pass reads. Changes the model's layers.

    On a CPU with AVX512-BF16, a forward in eval mode without gradients repacks them for inference. Every later backward
    pass reads the new layout as if it were the old one, and gradients are wrong by up to 80 %.

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


def _report(model: Any) -> None:
    settings = quantization_settings(model)
    bits = bits_of(settings)
    kind = f", {settings['bnb_4bit_quant_type']}" if bits == 4 else ""
    kept = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()})
    text = "bitsandbytes: %s bits%s; the other weights were %s and become float32"
    logging.getLogger("sftkit").info(text, bits, kind, ", ".join(kept))
