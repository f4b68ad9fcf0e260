"""Kernels compute the same as the forwards that they replace, and leave the weights alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sftkit.errors import ConfigError
from sftkit.testing.conformance.checks import CheckFailed, check, described, require, skip
from sftkit.testing.conformance.state import ModelState, summary

if TYPE_CHECKING:
    from sftkit.testing.conformance.workbench import Workbench

#: Relative distances (root mean square) that other orders of summation explain in float32.
LOGITS, GRADIENTS = 1e-4, 1e-3
SAME = "compute what the replaced forward computes, in forward and backward"


@check("patch_kernels")
def weights_stay(bench: Workbench, hook: str) -> None:
    """Weights, buffers, ties, dtypes, grad flags and modes stay, bit by bit"""
    for name, model in _patchable(bench):
        before = ModelState.of(model)
        _patch(bench, model)
        changed = summary(before.tensor_changes(ModelState.of(model)))
        require(not changed, f"{name}: {changed}", "replace forwards, and never parameters or buffers")


@check("patch_kernels")
def logits_stay(bench: Workbench, hook: str) -> None:
    """Logits are those of the unpatched model"""
    _compared(bench, "logits", LOGITS, times=1)


@check("patch_kernels")
def gradients_stay(bench: Workbench, hook: str) -> None:
    """Gradients are those of the unpatched model"""
    _compared(bench, "gradients", GRADIENTS, times=1)


@check("patch_kernels")
def twice_is_harmless(bench: Workbench, hook: str) -> None:
    """Patching a model twice is harmless"""
    _compared(bench, "logits", LOGITS, times=2)
    _compared(bench, "gradients", GRADIENTS, times=2)


def _compared(bench: Workbench, what: str, most: float, times: int) -> None:
    """Raises:
    CheckFailed: if a patched model computes something else.
    """
    for name, model in _patchable(bench):
        batch = bench.batch(model)
        expected = results(model, batch)[what]
        for _ in range(times):
            _patch(bench, model)
        try:
            found = results(model, batch)[what]
        except Exception as error:
            place = described(error, type(bench.plugin).__module__)
            fix = f"compute what the replaced forward computes, or leave {name} models alone"
            raise CheckFailed(f"{name}: the patched model fails: {place}", fix) from error
        for key, value in expected.items():
            if found.get(key) is None:
                raise CheckFailed(f"{name}: {key} has no gradient once the model is patched", SAME)
            apart = distance(found[key], value)
            label = f"the {what} of {key}" if key else f"the {what}"
            after = " twice" if times > 1 else ""
            require(apart <= most, f"{name}: {label} differ by {apart:.2g} when the model is patched{after}", SAME)


def _patchable(bench: Workbench) -> Iterator[tuple[str, Any]]:
    """The architectures that the plugin patches, each with a fresh model.

    Raises:
        CheckSkipped: if it patches none.
    """
    if not (found := _patched(bench)):
        names = " or ".join(bench.architectures)
        skip(f"it changes nothing of a {names} model, or refuses it, on {bench.device}; name a model that it patches")
    for name in found:
        yield name, bench.model(name)


@functools.lru_cache(maxsize=1)
def _patched(bench: Workbench) -> list[str]:
    found = []
    for name in bench.architectures:
        model = bench.model(name)
        before = ModelState.of(model)
        try:
            _patch(bench, model)
        except ConfigError:  # it refuses this architecture
            continue
        except Exception as error:
            place = described(error, type(bench.plugin).__module__)
            raise CheckFailed(f"{name}: {place}", f"patch {name} models too, or leave them alone") from error
        if next(before.changes(ModelState.of(model)), None) is not None:
            found.append(name)
    return found


def _patch(bench: Workbench, model: Any) -> None:
    bench.own("patch_kernels", model=model, config=bench.config)


def results(model: Any, batch: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The logits of a batch, and the gradients of its loss by the weights; the model keeps no gradients."""
    import torch

    real = batch["attention_mask"].bool()
    model.zero_grad()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        output = model(**batch, use_cache=False)
        output.loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return {"logits": {"": output.logits[real].detach()}, "gradients": gradients}


def distance(found: Any, expected: Any) -> float:
    """The relative distance of two tensors (root mean square)."""
    size = float(expected.float().norm())
    apart = float((found.float() - expected.float()).norm())
    return apart / size if size else apart
