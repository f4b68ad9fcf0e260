"""The loss head alone: forward and backward from hidden states to the mean cross-entropy, by four implementations."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median
from typing import Any

#: Tokens, hidden size and vocabulary.
SIZES = {"tokens": 8192, "hidden": 4096, "vocabulary": 151_936}
TOY_SIZES = {"tokens": 300, "hidden": 64, "vocabulary": 512}
WARMUP, ROUNDS = 2, 8
SLICE = 256  # tokens that are compared with float32


def missing(name: str, on_gpu: bool) -> str:
    """Why an implementation cannot be measured here; empty if it can."""
    module = {"trl": "trl", "liger": "liger_kernel"}.get(name)
    if module and find_spec(module) is None:
        return f"the package {module} is not installed"
    return "liger needs a GPU" if name == "liger" and not on_gpu else ""


def measure(name: str, tokens: int, hidden: int, vocabulary: int, device: str) -> dict[str, Any]:
    """Time, peak memory and error of one implementation.

    Returns:
        For a head that is trained and for a frozen one, ``ms`` (median) and ``peak_gib`` above the inputs. Against
        float32, ``loss_error``, ``hidden_error`` and ``weight_error``: the norm of the difference, relative.
    """
    import torch

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    weight = torch.randn(vocabulary, hidden, device=device, dtype=dtype) / hidden**0.5
    states = torch.randn(tokens, hidden, device=device, dtype=dtype)
    targets = torch.randint(vocabulary, (tokens,), device=device)
    loss = LOSSES[name]()
    found: dict[str, Any] = {"tokens": tokens, "hidden": hidden, "vocabulary": vocabulary}
    for kind, trained in (("trained", True), ("frozen", False)):
        found[kind] = _timed(loss, states, weight.requires_grad_(trained), targets, device)
    found |= _errors(loss, states[:SLICE], weight, targets[:SLICE])
    return found


def _timed(loss: Callable[..., Any], states: Any, weight: Any, targets: Any, device: str) -> dict[str, float]:
    import torch

    from gpu.watch import peak_gib

    seconds, peaks = [], []
    for number in range(WARMUP + ROUNDS):
        weight.grad = None
        inputs = states.detach().requires_grad_()
        gc.collect()
        before = _held(device)
        started = time.perf_counter()
        loss(inputs, weight, targets).backward()
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= WARMUP:
            seconds.append(time.perf_counter() - started)
            peaks.append(peak_gib(device) - before)
        if inputs.grad is None or (weight.grad is not None) != weight.requires_grad:
            raise RuntimeError("the backward has not left the gradients that it should")
    weight.grad = None
    return {"ms": round(median(seconds) * 1e3, 3), "peak_gib": round(max(peaks), 3)}


def _held(device: str) -> float:
    """Memory before a round, in GiB; what is measured next is the peak above it."""
    import torch

    if device != "cuda":
        from gpu.watch import peak_gib

        return peak_gib(device)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 2**30


def _errors(loss: Callable[..., Any], states: Any, weight: Any, targets: Any) -> dict[str, float]:
    """How far loss and gradients are from those of plain cross-entropy in float32."""

    def run(function: Callable[..., Any], states: Any, weight: Any) -> list[Any]:
        states, weight = states.detach().requires_grad_(), weight.detach().requires_grad_()
        value = function(states, weight, targets)
        value.backward()
        return [value.detach(), states.grad, weight.grad]

    expected = run(_plain(), states.float(), weight.float())
    names = ("loss_error", "hidden_error", "weight_error")
    return {
        name: float((ours.float() - theirs).norm() / theirs.norm())
        for name, ours, theirs in zip(names, run(loss, states, weight), expected, strict=True)
    }


def _sftkit() -> Callable[..., Any]:
    from torch.nn import functional

    from sftkit.training.loss import HeadLoss, OutputHead, summed_loss

    def loss(states: Any, weight: Any, targets: Any) -> Any:
        head = OutputHead(len(weight), lambda inputs: functional.linear(inputs, weight), weight)
        return summed_loss(HeadLoss(), states, head, targets)[0] / len(targets)

    return loss


def _trl() -> Callable[..., Any]:
    """As SFTTrainer's fused head calls it: with entropy and accuracy, and the loss of every trained token."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    def loss(states: Any, weight: Any, targets: Any) -> Any:
        outputs = ("log_probs", "entropy", "is_top1")
        arguments = (1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, outputs)
        return -ChunkedLogProbFunction.apply(states, weight, None, targets, *arguments)[0].sum() / len(targets)

    return loss


def _liger() -> Callable[..., Any]:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    fused = LigerFusedLinearCrossEntropyLoss()
    return lambda states, weight, targets: fused(weight, states, targets)


def _plain() -> Callable[..., Any]:
    from torch.nn import functional

    return lambda states, weight, targets: functional.cross_entropy(functional.linear(states, weight).float(), targets)


LOSSES = {"sftkit": _sftkit, "trl": _trl, "liger": _liger, "plain": _plain}
