"""Base models that bitsandbytes quantized, prepared for an adapter."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sftkit.api import (
    CHECKPOINTING_KEYS,
    ConfigError,
    Problem,
    base_model,
    has_adapter,
    quantization_settings,
    requirement_problem,
    size_text,
)
from sftkit_plugins.hf.adapters import PEFT

if TYPE_CHECKING:
    from sftkit.api import RunConfig

#: From this share of all bytes on, weights of more than two dimensions are reported: experts, not convolutions.
STACKED_SHARE = 0.1


def bits_of(settings: Mapping[str, Any]) -> int | None:
    """The bits per weight in settings of bitsandbytes; None for other settings."""
    return next((bits for bits in (4, 8) if settings.get(f"load_in_{bits}bit")), None)


def prepare_quantized(model: Any, config: RunConfig) -> None:
    """Prepare a base that bitsandbytes quantized for an adapter. Changes the model.

    The base is frozen, and what is not quantized becomes float32; an adapter that the model already has stays
    trainable. If activations are checkpointed, the outputs of the embeddings require gradients, which reentrant
    checkpoints need.

    Raises:
        ConfigError: if peft is missing, the output head is quantized, or weights were repacked for inference.
    """
    if problem := requirement_problem(PEFT, "model: quantized weights, which need an adapter"):
        raise ConfigError(problem)
    from peft import prepare_model_for_kbit_training

    head = model.get_output_embeddings()
    if head is not None and type(head.weight).__name__ in ("Params4bit", "Int8Params"):
        what = "the output head is quantized, but the loss needs its full weights"
        raise ConfigError(Problem(what, "model", "add its name to llm_int8_skip_modules or skip_modules"))
    _keep_unpacked(model)
    _report(model)
    trained = [weight for weight in model.parameters() if weight.requires_grad] if has_adapter(model) else []
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
        ConfigError: if the weights are repacked already; bitsandbytes cannot undo it, because it rounded the scales.
    """
    for module in model.modules():
        weight: Any = getattr(module, "weight", None)
        if type(weight).__name__ != "Params4bit":
            continue
        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            what = "the model was evaluated on this CPU, which repacked its weights; their gradients would be wrong"
            fix = "load it again, and set support_avx512bf16_for_cpu = False on its Linear4bit layers at once"
            raise ConfigError(Problem(what, "model", fix))
        module.support_avx512bf16_for_cpu = False


def _report(model: Any) -> None:
    settings = quantization_settings(model)
    bits = bits_of(settings)
    kind = f", {settings['bnb_4bit_quant_type']}" if bits == 4 else ""
    types = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()})
    text = "bitsandbytes: %s bits%s; other weights were %s and become float32"
    log = logging.getLogger("sftkit")
    log.info(text, bits, kind, ", ".join(types))
    sizes = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
    stacked = [name for name, p in model.named_parameters() if p.is_floating_point() and p.ndim > 2]
    left = sum(sizes[name] for name in stacked)
    if left > STACKED_SHARE * sum(sizes.values()):
        text = "bitsandbytes quantizes linear layers only: %s, and %d such weights of experts, are not quantized (%s)"
        log.warning(text, stacked[0], len(stacked) - 1, size_text(left))
