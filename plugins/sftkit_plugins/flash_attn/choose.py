"""Which implementation works with this machine, this precision and this model, and why another does not."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.errors import Problem

if TYPE_CHECKING:
    from sftkit.config import RunConfig

#: The packages of transformers' implementations, and how they are installed.
PACKAGES = {
    "flash_attention_2": ("flash_attn", "pip install flash-attn --no-build-isolation"),
    "flash_attention_3": ("flash_attn_interface", "install FlashAttention-3 from the folder hopper of its repository"),
}
#: What is best where several work, by kind of device.
ORDER = {"cuda": ("flash_attention_3", "flash_attention_2", "varlen", "flex"), "other": ("varlen",)}
#: What each does not do; models that ask for it are refused.
LACKS = {
    "varlen": ("soft caps", "sinks", "dropout", "chunks"),
    "sdpa_flash": ("soft caps", "sinks", "windows", "chunks"),
    "flash_attention_2": ("sinks", "chunks"),
    "flash_attention_3": ("sinks", "dropout", "chunks"),
    "flex": ("dropout",),
}
DROPOUT = ("attention_dropout", "attn_pdrop", "attn_dropout", "attention_probs_dropout_prob")
SINKS = ("deepseek_v4", "flint", "gpt_oss", "granite_swa", "granitemoe_swa", "hy_v4", "mimo_v2_flash")
WIDEST_HEAD = 256
MEND = "choose another implementation, or run without flash_attn"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What there is to compute with.

    Attributes:
        device: ``cuda``, ``cpu``, ...
        capability: of the GPU, as ``(9, 0)``.
        packages: modules of `PACKAGES` that are installed.
        torch: its version.
        varlen: whether torch's ``varlen_attn`` takes the arguments that are passed here.
    """

    device: str
    capability: tuple[int, int] = (0, 0)
    packages: frozenset[str] = frozenset()
    torch: str = ""
    varlen: bool = False


def this_machine(config: RunConfig) -> Machine:
    """The machine as it is, without its GPU where ``train.use_cpu`` is set."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = "cpu" if accelerator is None or config.train.get("use_cpu") else accelerator.type
    capability = torch.cuda.get_device_capability() if device == "cuda" else (0, 0)
    packages = frozenset(module for module, _ in PACKAGES.values() if find_spec(module))
    varlen = {"scale", "window_size"} <= varlen_arguments()  # since torch 2.11
    return Machine(device, capability, packages, torch.__version__, varlen)


def varlen_arguments() -> frozenset[str]:
    """The arguments of torch's ``varlen_attn``; none where torch does not have it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


def architecture(config: RunConfig) -> Any:
    """The model's configuration with ``model.options`` on it; None where it is no local directory."""
    path = Path(config.model.name)
    if not (path / "config.json").is_file():
        return None
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(str(path), trust_remote_code=config.model.trust_remote_code)
    except (OSError, ValueError, KeyError):
        return None  # the loader tells what is wrong with it
    for name, value in config.model.options.items():
        if hasattr(found, name) and not name.startswith("attn_impl"):
            setattr(found, name, value)
    return found


def half_precision(config: RunConfig, model: Any) -> bool | None:
    """Whether training computes in half precision; None where only the loaded weights tell.

    Args:
        config: the run as resolved.
        model: the model, once it is loaded; its frozen weights may be in half precision where an adapter is not.
    """
    if config.train.get("bf16") or config.train.get("fp16"):
        return True
    if model is not None:
        return any(str(parameter.dtype) in ("torch.bfloat16", "torch.float16") for parameter in model.parameters())
    if config.model.dtype == "auto" or config.model.name.startswith("loaded "):  # as Pipeline names what it is given
        return None
    return config.model.dtype != "float32"


def resolve(
    implementation: str, config: RunConfig, machine: Machine, model: Any, half: bool | None
) -> tuple[str, list[Problem]]:
    """The implementation to use, and what stands in its way.

    Args:
        implementation: the option; ``auto`` becomes the best that nothing stands in the way of.
        config: the run as resolved.
        machine: what there is to compute with.
        model: the model's configuration, or None if it is not known yet.
        half: whether training computes in half precision, or None if it is not known yet.
    """
    if implementation != "auto":
        return implementation, list(obstacles(implementation, config, machine, model, half))
    candidates = ORDER.get(machine.device, ORDER["other"])
    found = {name: list(obstacles(name, config, machine, model, half)) for name in candidates}
    free = next((name for name in candidates if not found[name]), None)
    if free is not None:
        return free, []
    # What is most easily mended: the last needs no package.
    name = "varlen" if "varlen" in candidates else candidates[-1]
    return name, found[name]


def obstacles(name: str, config: RunConfig, machine: Machine, model: Any, half: bool | None) -> Iterator[Problem]:
    """What stands in the way of one implementation: device, package, precision, model."""
    where, key = "plugin flash_attn, option implementation", ("plugins", "flash_attn", "implementation")
    gpu = machine.device == "cuda"
    if name in PACKAGES and not gpu:
        yield Problem(
            f"{name} needs a GPU, and there is none to train on here", where, "set implementation: varlen", key
        )
    if name in PACKAGES and PACKAGES[name][0] not in machine.packages:
        module, install = PACKAGES[name]
        mend = f"{install}; or set implementation: varlen"
        yield Problem(f"{name} needs the package {module}, which is not installed", where, mend, key)
    if name == "flex" and not gpu:
        what = f"flex has no backward on the device {machine.device}"
        yield Problem(what, where, "set implementation: varlen", key)
    if name == "varlen" and gpu and not machine.varlen:
        what = f"varlen needs a newer torch: {machine.torch} has no varlen_attn with windows and a scale"
        yield Problem(what, where, "install torch 2.11, or set implementation: sdpa_flash", key)
    least = {"flash_attention_3": (9, 0), "flex": (0, 0)}.get(name, (8, 0))
    if gpu and machine.capability < least:
        what = f"{name} needs compute capability {least[0]}.{least[1]}, and the GPU has "
        yield Problem(what + ".".join(map(str, machine.capability)), where, "run without flash_attn", key)
    if gpu and name != "flex" and half is False:
        mend = "set model.dtype: bfloat16, or train.bf16: true"
        yield Problem(f"{name} takes half precision, and training is in float32", where, mend, ("model", "dtype"))
    yield from _model_obstacles(name, config, machine, model)


def _model_obstacles(name: str, config: RunConfig, machine: Machine, model: Any) -> Iterator[Problem]:
    if model is None:
        return
    where = "plugin flash_attn, option implementation"
    asks = demands(model, config.data.max_length)
    gpu = machine.device == "cuda"
    lacks = LACKS[name] + (("dropout",) if name == "sdpa_flash" and not gpu else ())
    lacks += ("wide heads",) if gpu and name != "flex" else ()
    for feature, (what, mend) in asks.items():
        if feature in lacks or feature == "states":
            yield Problem(f"{name} cannot do what model type {model.model_type} has: {what}", where, mend)


def demands(model: Any, max_length: int) -> dict[str, tuple[str, str]]:
    """What a model asks of its attention besides the plain causal one: by feature, in words, with the mend."""
    text = model.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or [])
    found: dict[str, tuple[str, str]] = {}
    if getattr(text, "attn_logit_softcapping", None) is not None:
        found["soft caps"] = ("soft caps on its scores", MEND)
    if text.model_type in SINKS:
        found["sinks"] = ("attention sinks", MEND)
    dropout = {key: getattr(text, key) for key in DROPOUT if isinstance(getattr(text, key, None), float)}
    if asked := [key for key, rate in dropout.items() if rate > 0]:
        found["dropout"] = (f"{asked[0]} {dropout[asked[0]]:g}", f"set model.options.{asked[0]}: 0.0")
    window = getattr(text, "sliding_window", None)
    if window is not None and window < max_length and (not kinds or "sliding_attention" in kinds):
        mend = f"lower data.max_length to {window}, or set implementation: varlen"
        found["windows"] = (f"a sliding window of {window} tokens", mend)
    widths = [getattr(text, key, None) for key in ("head_dim", "global_head_dim")]
    if (width := max((width for width in widths if isinstance(width, int)), default=0)) > WIDEST_HEAD:
        found["wide heads"] = (f"heads of width {width}, where flash kernels take at most {WIDEST_HEAD}", MEND)
    if "chunked_attention" in kinds:
        found["chunks"] = ("attention in chunks", MEND)
    if others := sorted(kinds - {"full_attention", "sliding_attention", "chunked_attention"}):
        found["states"] = (f"layers of type {', '.join(others)}", "run without flash_attn")
    if getattr(text, "is_causal", True) is False or getattr(text, "use_bidirectional_attention", False):
        found["states"] = ("attention to later tokens", "run without flash_attn")
    return found
