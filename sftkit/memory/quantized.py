"""What a model takes whose linear layers will be quantized, counted on one that is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sftkit.models.inspect import base_model

#: Weights that share a scale: in bitsandbytes' 4-bit types, and where GPTQ and AWQ do not say.
BLOCK_4BIT, GROUP = 64, 128


class UnknownQuantizationError(Exception):
    """What a method of quantization keeps of a weight is not known; names it."""


def bytes_each(quantization: Mapping[str, Any]) -> float:
    """Bytes that a weight takes, with its share of the scales.

    Args:
        quantization: a ``quantization_config`` of transformers.

    Raises:
        UnknownQuantizationError: for a method that is not known here.

    Source: Dettmers et al., 2023, QLoRA (arXiv 2305.14314), section 3, for the scales of scales.
    """
    method = str(getattr(quantization.get("quant_method"), "value", quantization.get("quant_method")))
    if quantization.get("load_in_4bit") or quantization.get("_load_in_4bit"):
        twice = quantization.get("bnb_4bit_use_double_quant")
        return 0.5 + (1 / BLOCK_4BIT + 4 / (BLOCK_4BIT * 256) if twice else 4 / BLOCK_4BIT)
    if quantization.get("load_in_8bit") or quantization.get("_load_in_8bit"):
        return 1.0
    bits = quantization.get("bits") or quantization.get("w_bit")
    if method in ("gptq", "awq") and bits:
        group = int(quantization.get("group_size") or GROUP)
        return int(bits) / 8 + (2 + int(bits) / 8) / (group if group > 0 else 4096)
    raise UnknownQuantizationError(method)


def quantized_bytes(model: Any, quantization: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes of all weights as they will be, and of the largest one while it is made whole for a product.

    Args:
        model: the model, its linear layers not quantized, perhaps with adapters on it.
        quantization: a ``quantization_config`` of transformers.

    Raises:
        UnknownQuantizationError: for a method that is not known here.
    """
    from torch import nn

    each = bytes_each(quantization)
    names = ("llm_int8_skip_modules", "modules_to_not_convert")
    skipped = next((tuple(quantization[name]) for name in names if quantization.get(name)), ())
    base = base_model(model)
    chosen = {
        id(module.weight): module.weight
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear)
        and not module.weight.requires_grad
        and module is not base.get_output_embeddings()
        and not any(part in name for part in skipped)
    }
    tensors = {id(value): value for value in (*model.parameters(), *model.buffers())}
    rest = sum(value.nbytes for key, value in tensors.items() if key not in chosen)
    packed = sum(value.numel() for value in chosen.values())
    return rest + round(packed * each), max((value.nbytes for value in chosen.values()), default=0)
