"""Which implementation works with this machine, precision and model, and why the others do not."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.api import Problem

if TYPE_CHECKING:
    from sftkit.api import RunConfig

#: The packages that transformers' implementations need, and how to install them.
PACKAGES = {
    "flash_attention_2": ("flash_attn", "pip install flash-attn --no-build-isolation"),
    "flash_attention_3": ("flash_attn_interface", "install FlashAttention-3 from the hopper folder of its repository"),
}
#: The order of preference when several work, by kind of device.
ORDER = {"cuda": ("flash_attention_3", "flash_attention_2", "varlen", "flex"), "other": ("varlen",)}
#: What each does not support. Models that need it are refused.
LACKS = {
    "varlen": ("soft caps", "sinks", "dropout", "chunks"),
    "sdpa_flash": ("soft caps", "sinks", "windows", "chunks"),
    "flash_attention_2": ("sinks", "chunks"),
    "flash_attention_3": ("sinks", "dropout", "chunks"),
    "flex": ("dropout",),
}
DROPOUT = ("attention_dropout", "attn_pdrop", "attn_dropout", "attention_probs_dropout_prob")
#: Methods of the plugin peft that put virtual tokens before a row, and so only before its first document.
PROMPTS = ("prompt_tuning", "p_tuning", "prefix_tuning", "multitask_prompt_tuning", "cpt", "cartridge")
SINKS = ("deepseek_v4", "flint", "gpt_oss", "granite_swa", "granitemoe_swa", "hy_v4", "mimo_v2_flash")
FIX = "choose another implementation, or run without flash_attn"
WIDEST_HEAD = 256


@dataclasses.dataclass(frozen=True)
class Machine:
    """The hardware and the packages that are available.

    Attributes:
        device: ``cuda``, ``cpu``, ...
        capability: the compute capability of the GPU, such as ``(9, 0)``.
        packages: the modules of `PACKAGES` that are installed.
        torch: the version of torch.
        varlen: whether torch's ``varlen_attn`` takes all arguments that sftkit passes.
    """

    device: str
    capability: tuple[int, int] = (0, 0)
    packages: frozenset[str] = frozenset()
    torch: str = ""
    varlen: bool = False


def this_machine(config: RunConfig) -> Machine:
    """This machine; its GPU is ignored if ``train.use_cpu`` is set."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = "cpu" if accelerator is None or config.train.get("use_cpu") else accelerator.type
    capability = torch.cuda.get_device_capability() if device == "cuda" else (0, 0)
    packages = frozenset(module for module, _ in PACKAGES.values() if find_spec(module))
    varlen = {"scale", "window_size"} <= varlen_arguments()  # since torch 2.11
    return Machine(device, capability, packages, torch.__version__, varlen)


def varlen_arguments() -> frozenset[str]:
    """The arguments of torch's ``varlen_attn``; empty if torch does not have the function."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


def architecture(config: RunConfig) -> Any:
    """The model's configuration with ``model.options`` applied; None if the model is not a local directory."""
    path = Path(config.model.name)
    if not (path / "config.json").is_file():
        return None
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(str(path), trust_remote_code=config.model.trust_remote_code)
    except (OSError, ValueError, KeyError):
        return None  # the loader reports what is wrong with it
    for name, value in config.model.options.items():
        if hasattr(found, name) and not name.startswith("attn_impl"):
            setattr(found, name, value)
    return found


def half_precision(config: RunConfig, model: Any) -> bool | None:
    """Whether training computes in half precision; None if that depends on the loaded weights.

    Args:
        config: the resolved configuration.
        model: the model, once it is loaded. Its frozen weights may be in half precision even if an adapter is not.
    """
    if config.train.get("bf16") or config.train.get("fp16"):
        return True
    if model is not None:
        return any(str(parameter.dtype) in ("torch.bfloat16", "torch.float16") for parameter in model.parameters())
    if config.model.dtype == "auto" or config.model.loaded:
        return None
    return config.model.dtype != "float32"


def has_prompts(config: RunConfig) -> bool:
    """Whether the plugin peft puts virtual tokens before each row."""
    return str(config.plugins.get("peft", {}).get("method", "lora")).lower().replace("-", "_") in PROMPTS


def resolve(
    implementation: str,
    config: RunConfig,
    machine: Machine,
    model: Any,
    half: bool | None,
    compiled: bool = True,
) -> tuple[str, list[Problem]]:
    """The implementation to use, and the problems that prevent its use.

    Args:
        implementation: the option; ``auto`` selects the best one without problems.
        config: the resolved configuration.
        machine: the hardware and packages.
        model: the model's configuration, or None if it is not known yet.
        half: whether training computes in half precision, or None if it is not known yet.
        compiled: whether ``auto`` may select ``flex``, which is compiled in the first steps.
    """
    if implementation != "auto":
        return implementation, list(obstacles(implementation, config, machine, model, half))
    candidates = [name for name in ORDER.get(machine.device, ORDER["other"]) if compiled or name != "flex"]
    found = {name: list(obstacles(name, config, machine, model, half)) for name in candidates}
    free = next((name for name in candidates if not found[name]), None)
    if free is not None:
        return free, []
    # Report the problems that are easiest to fix: varlen needs no package.
    name = "varlen" if "varlen" in candidates else candidates[-1]
    return name, found[name]


def obstacles(name: str, config: RunConfig, machine: Machine, model: Any, half: bool | None) -> Iterator[Problem]:
    """The problems that prevent the use of an implementation: its device, package, precision or model."""
    where, key = "plugin flash_attn, option implementation", ("plugins", "flash_attn", "implementation")
    gpu = machine.device == "cuda"
    if name in PACKAGES and not gpu:
        yield Problem(
            f"{name} needs a GPU, but none is available for training", where, "set implementation: varlen", key
        )
    if name in PACKAGES and PACKAGES[name][0] not in machine.packages:
        module, install = PACKAGES[name]
        fix = f"{install}; or set implementation: varlen"
        yield Problem(f"{name} needs the package {module}, which is not installed", where, fix, key)
    if name == "flex" and not gpu:
        what = f"flex has no backward pass on the device {machine.device}"
        yield Problem(what, where, "set implementation: varlen", key)
    if name == "varlen" and gpu and not machine.varlen:
        what = f"varlen needs torch 2.11 or newer on a GPU, but torch {machine.torch} is installed"
        yield Problem(what, where, "install torch 2.11 or newer, or set implementation: sdpa_flash", key)
    least = {"flash_attention_3": (9, 0), "flex": (0, 0)}.get(name, (8, 0))
    if gpu and machine.capability < least:
        what = f"{name} needs compute capability {least[0]}.{least[1]} or higher, but the GPU has "
        yield Problem(what + ".".join(map(str, machine.capability)), where, "run without flash_attn", key)
    if gpu and name != "flex" and half is False:
        fix = "set model.dtype: bfloat16, or train.bf16: true"
        yield Problem(f"{name} needs half precision, but training is in float32", where, fix, ("model", "dtype"))
    yield from _model_obstacles(name, config, machine, model)


def _model_obstacles(name: str, config: RunConfig, machine: Machine, model: Any) -> Iterator[Problem]:
    if model is None:
        return
    where = "plugin flash_attn, option implementation"
    asks = demands(model, config.data.max_length)
    gpu = machine.device == "cuda"
    lacks = LACKS[name] + (("dropout",) if name == "sdpa_flash" and not gpu else ())
    lacks += ("wide heads",) if gpu and name != "flex" else ()
    for feature, (what, fix) in asks.items():
        if feature in lacks or feature == "states":
            yield Problem(f"{name} does not support {what} (model type {model.model_type})", where, fix)


def demands(model: Any, max_length: int) -> dict[str, tuple[str, str]]:
    """What a model needs besides plain causal attention: by feature, a description and a fix."""
    text = model.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or [])
    found: dict[str, tuple[str, str]] = {}
    if getattr(text, "attn_logit_softcapping", None) is not None:
        found["soft caps"] = ("soft caps on the attention scores", FIX)
    if text.model_type in SINKS:
        found["sinks"] = ("attention sinks", FIX)
    dropout = {key: getattr(text, key) for key in DROPOUT if isinstance(getattr(text, key, None), float)}
    if asked := [key for key, rate in dropout.items() if rate > 0]:
        what = f"dropout on the attention scores, {asked[0]} {dropout[asked[0]]:g}"
        found["dropout"] = (what, f"set model.options.{asked[0]}: 0.0")
    window = getattr(text, "sliding_window", None)
    if window is not None and window < max_length and (not kinds or "sliding_attention" in kinds):
        fix = f"lower data.max_length to {window}, or set implementation: varlen"
        found["windows"] = (f"a sliding window of {window} tokens", fix)
    widths = [getattr(text, key, None) for key in ("head_dim", "global_head_dim")]
    if (width := max((width for width in widths if isinstance(width, int)), default=0)) > WIDEST_HEAD:
        found["wide heads"] = (f"attention heads of width {width}, above the limit of {WIDEST_HEAD}", FIX)
    if "chunked_attention" in kinds:
        found["chunks"] = ("attention in chunks", FIX)
    if others := sorted(kinds - {"full_attention", "sliding_attention", "chunked_attention"}):
        found["states"] = (f"layers of type {', '.join(others)}", "run without flash_attn")
    if getattr(text, "is_causal", True) is False or getattr(text, "use_bidirectional_attention", False):
        found["states"] = ("attention to later tokens", "run without flash_attn")
    return found
