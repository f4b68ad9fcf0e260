"""Spectrum: the layers whose weights have the highest signal-to-noise ratio.

Source: Hartford et al., 2024, Spectrum: Targeted Training on Signal to Noise Ratio (arXiv 2406.06623), section 3.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from sftkit.api import ConfigError, Problem, device_of, is_linear
from sftkit_plugins.freeze import WHERE
from sftkit_plugins.freeze.names import Named

if TYPE_CHECKING:
    from torch import Tensor

    from sftkit.api import Choices, RunConfig

logger = logging.getLogger("sftkit")
#: Of a normal distribution, the distance between its quartiles, in standard deviations.
QUARTILES = 1.349


def signal_to_noise(weight: Tensor) -> float:
    """The signal-to-noise ratio of a matrix, divided by its largest singular value, as in Spectrum.

    Singular values above the threshold of Marchenko and Pastur are signal, the others noise. The standard deviation in
    the threshold is estimated from the quartiles of the singular values.

    Args:
        weight: [M, N].

    Returns:
        The ratio; infinity if there is no noise.
    """
    import torch

    values = torch.linalg.svdvals(weight.float())
    low, high = torch.quantile(values, torch.tensor([0.25, 0.75], device=values.device)).tolist()
    small, large = sorted(weight.shape)
    threshold = (high - low) / QUARTILES * (1 + math.sqrt(small / large))
    is_signal = values > threshold
    signal, noise, largest = float(values[is_signal].sum()), float(values[~is_signal].sum()), float(values[0])
    if not largest:
        return 0.0
    return signal / noise / largest if noise else math.inf


def kinds_of(model: Any, trained: dict[int, Named]) -> dict[str, dict[str, Any]]:
    """The linear modules of the layers: by kind, such as ``model.layers.*.mlp.up_proj``, and then by name."""
    found: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        weight: Any = getattr(module, "weight", None)
        if not is_linear(module) or id(weight) not in trained:
            continue
        _require_whole(weight)
        if weight.ndim != 2:
            continue
        parts = name.split(".")
        number = next((place for place, part in enumerate(parts) if part.isdigit()), None)
        if number is not None:
            found.setdefault(".".join([*parts[:number], "*", *parts[number + 1 :]]), {})[name] = module
    return found


def chosen(model: Any, trained: dict[int, Named], share: float, config: RunConfig, choices: Choices) -> set[int]:
    """The identities of the weights, with their biases, of the modules that Spectrum trains.

    Raises:
        ConfigError: if a share of the layers is less than one, or the weights are not whole in this process.
    """
    kinds = kinds_of(model, trained)
    if not any(_number(modules, share) for modules in kinds.values()):
        most = max(map(len, kinds.values()), default=0)
        what = f"{share:g} of {most} layers is less than one layer" if most else "no linear modules were found"
        fix = f"use at least {1 / most:.2g}" if most else "name the weights in the option train"
        raise ConfigError(Problem(what, f"{WHERE}, option spectrum", fix, ("plugins", "freeze", "spectrum")))
    found = choices.once(f"freeze: spectrum {share:g}", lambda: _rank(kinds, share, config))
    kept = set()
    for kind, names in found.items():
        logger.info("freeze: %s: %s of %d", kind, ", ".join(_layer(kind, name) for name in names), len(kinds[kind]))
        kept |= {id(weight) for name in names for weight in kinds[kind][name].parameters(recurse=False)}
    return kept


def _number(modules: dict[str, Any], share: float) -> int:
    return math.floor(len(modules) * share + 1e-9)


def _layer(kind: str, name: str) -> str:
    """The number of the layer in a name."""
    before, _, after = kind.partition("*")
    return name.removeprefix(before).removesuffix(after)


def _rank(kinds: dict[str, dict[str, Any]], share: float, config: RunConfig) -> dict[str, dict[str, float | None]]:
    """For each kind, the modules that are trained, with their ratios, in the order of the model."""
    device = device_of(config)
    found: dict[str, dict[str, float | None]] = {}
    for kind, modules in kinds.items():
        ratios = {name: _ratio(module.weight.detach(), device) for name, module in modules.items()}
        best = sorted(ratios, key=lambda name: -ratios[name])[: _number(modules, share)]
        if best:
            found[kind] = {
                name: ratios[name] if math.isfinite(ratios[name]) else None for name in ratios if name in best
            }
    return found


def _ratio(weight: Tensor, device: Any) -> float:
    """The ratio of a weight; without values, as for an estimate of memory, that of the first layers is the highest."""
    return 0.0 if weight.is_meta else signal_to_noise(weight.to(device))


def _require_whole(weight: Any) -> None:
    """Raises:
    ConfigError: if a weight is divided, as by stage 3 of ZeRO, or a DTensor.
    """
    if not weight.numel() or hasattr(weight, "full_tensor"):
        what = "the weights are divided among the processes, and Spectrum needs whole ones"
        fix = "take the choice of another run from its manifest into the option train, or divide them otherwise"
        raise ConfigError(Problem(what, f"{WHERE}, option spectrum", fix, ("plugins", "freeze", "spectrum")))
