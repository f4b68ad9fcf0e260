"""Mixed precision that a device does not compute, or that does not fit the weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.errors import Problem

if TYPE_CHECKING:
    from sftkit.config import RunConfig

KEYS = ("fp16", "bf16", "bf16_full_eval", "tf32")
HALF = ("float16", "bfloat16")


def precision_problems(config: RunConfig, model: Any = None, adapted: bool = False) -> Iterator[Problem]:
    """Settings of the section ``train`` that this device does not compute, or that do not fit the weights.

    Args:
        config: the run as resolved.
        model: the model, if it is loaded.
        adapted: whether a plugin adds an adapter, whose weights are in float32.
    """
    chosen = [key for key in KEYS if config.train.get(key)]
    if not chosen:
        return
    if "fp16" in chosen and "bf16" in chosen:
        yield _problem("fp16", "fp16 and bf16 are both set", "keep one of them")
        return
    device = _device(config)
    if "fp16" in chosen and device == "cpu":
        what = "a CPU does not train in fp16: it would be ignored"
        yield _problem("fp16", what, "remove it, or set train.bf16: true and train.use_cpu: true")
    for key in {"bf16", "bf16_full_eval"}.intersection(chosen):
        if not config.train.get("use_cpu") and not _has_bf16():
            what = "no GPU is available" if device == "cpu" else "this GPU does not compute in bfloat16"
            fix = "set train.use_cpu: true, or remove it" if device == "cpu" else "set train.fp16: true instead"
            yield _problem(key, f"{key} needs a GPU that computes in bfloat16; {what}", fix)
    if "tf32" in chosen and not _has_tf32():
        yield _problem("tf32", "tf32 needs an NVIDIA GPU of compute capability 8.0 or higher", "remove it")
    if "fp16" in chosen and (dtype := None if adapted else _half_weights(config, model)):
        what = f"fp16 scales gradients of float32 weights, but those of the model are in {dtype}"
        fix = "set model.dtype: float32, add an adapter, or replace train.fp16 by train.bf16"
        yield _problem("fp16", what, fix)


def _problem(key: str, what: str, fix: str) -> Problem:
    return Problem(what, f"train.{key}", fix, ("train", key))


def _device(config: RunConfig) -> str:
    """The type of the device of training."""
    import torch

    found = None if config.train.get("use_cpu") else torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else str(found.type)


def _has_bf16() -> bool:
    from transformers.utils import is_torch_bf16_gpu_available

    return bool(is_torch_bf16_gpu_available())


def _has_tf32() -> bool:
    from transformers.utils import is_torch_tf32_available

    return bool(is_torch_tf32_available())


def _half_weights(config: RunConfig, model: Any) -> str:
    """The half precision of the weights to train, as far as it is known; empty for float32."""
    if model is not None:
        kinds = {str(weight.dtype).removeprefix("torch.") for weight in model.parameters() if weight.requires_grad}
        return next((kind for kind in HALF if kind in kinds), "")
    dtype: Any = config.model.dtype
    if dtype == "auto":
        try:
            saved = json.loads(Path(config.model.name, "config.json").read_text("utf-8"))
        except (OSError, ValueError):
            return ""  # on the hub, or for the loader to report
        dtype = saved.get("dtype") or saved.get("torch_dtype")
    return dtype if dtype in HALF else ""
