"""Which implementations of attention work here, tried on a tiny model, forward and backward."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch

from sftkit.api import install_command
from sftkit_commands.doctor.devices import device
from sftkit_commands.doctor.findings import Finding, reason

SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
WORKS = "forward and backward"
#: Implementation to the package that has it, and the command that installs that.
FLASH = {
    "flash_attention_2": ("flash_attn", "pip install flash-attn --no-build-isolation"),
    "flash_attention_3": ("flash_attn_interface", "build it: https://github.com/Dao-AILab/flash-attention"),
    "flash_attention_4": ("flash_attn.cute", install_command("flash-attn-4")),
}


def attention() -> Iterator[Finding]:
    """Each implementation of transformers, and each back end of torch's."""
    yield _tried("eager")
    yield _tried("sdpa")
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
        yield _back_end(name)
    for name, (package, fix) in FLASH.items():
        if device().type != "cuda":
            yield Finding(name, "needs a GPU", "no")
        elif not _installed(package):
            yield Finding(name, f"needs the package {package.partition('.')[0]}", "no", fix)
        else:
            yield _tried(name, torch.bfloat16)
    yield _flex()
    if _installed("kernels"):
        yield Finding("kernels of the hub", "not tried: they are downloaded", "ok")
    else:
        yield Finding("kernels of the hub", "needs the package kernels", "no", install_command("kernels"))
    yield Finding("paged attention", "generates text only, and cannot train", "no")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package is missing
        return False


def _tried(name: str, dtype: torch.dtype = torch.float32) -> Finding:
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.for_model("llama", **SIZES)
        model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=name, dtype=dtype).to(device())
        ids = torch.arange(16, device=device()).view(2, 8)
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
        return Finding(name, WORKS, "ok")
    except Exception as error:  # whatever it raises, this implementation does not work
        return Finding(name, reason(error), "no")


def _back_end(name: str) -> Finding:
    """A back end of torch's scaled_dot_product_attention."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    shown = f"sdpa, {name.partition('_')[0].lower()}"
    dtype = torch.float32 if device().type == "cpu" else torch.bfloat16
    try:
        q = torch.ones(1, 2, 16, 32, dtype=dtype, device=device(), requires_grad=True)
        with sdpa_kernel(getattr(SDPBackend, name)):
            torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
        return Finding(shown, WORKS, "ok")
    except Exception as error:  # whatever it raises, this back end does not work
        missing = "No available kernel" in str(error) or "No viable backend" in str(error)
        return Finding(shown, "has no kernel for this device" if missing else reason(error), "no")


def _flex() -> Finding:
    """Not tried: it is compiled, which takes longer than everything else."""
    name = "flex_attention"
    if device().type != "cuda":
        return Finding(name, "has no backward on this device", "no")
    if not _installed("triton"):
        return Finding(name, "needs the package triton", "no", install_command("triton"))
    return Finding(name, "not tried: it is compiled first", "ok")
