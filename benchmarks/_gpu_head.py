"""The loss head alone: forward and backward from hidden states, with the head's weights trained or not."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

ROUNDS = 10
SHARE = 64  # tokens on which the loss is compared with torch's own


def measure(tokens: int, hidden: int, vocabulary: int, device: str) -> dict[str, Any]:
    """Milliseconds and peak memory of both cases, and how far the loss is from torch's cross-entropy."""
    import torch
    from _gpu_watch import peak_gib

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    weight = torch.randn(vocabulary, hidden, device=device, dtype=dtype) / hidden**0.5
    states = torch.randn(tokens, hidden, device=device, dtype=dtype)
    targets = torch.randint(vocabulary, (tokens,), device=device)
    told: dict[str, Any] = {"tokens": tokens, "hidden": hidden, "vocabulary": vocabulary}
    for name, trained in (("trained", True), ("frozen", False)):
        seconds = []
        for number in range(ROUNDS + 3):
            own, inputs = weight.detach().requires_grad_(trained), states.detach().requires_grad_()
            if device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            _loss(inputs, own, targets).backward()
            if device == "cuda":
                torch.cuda.synchronize()
            if number >= 3:
                seconds.append(time.perf_counter() - started)
            assert inputs.grad is not None
            assert (own.grad is not None) == trained
        told[name] = {"ms": round(median(seconds) * 1e3, 3), "peak_gib": round(peak_gib(device), 3)}
    with torch.no_grad():
        some, ids = states[:SHARE], targets[:SHARE]
        expected = torch.nn.functional.cross_entropy((some @ weight.t()).float(), ids, reduction="sum")
        told["apart"] = float(abs(_loss(some, weight, ids) - expected) / expected)
    return told


def _loss(states: Any, weight: Any, targets: Any) -> Any:
    from torch.nn import functional

    from sftkit.training.loss import HeadLoss, OutputHead, summed_loss

    head = OutputHead(len(weight), lambda inputs: functional.linear(inputs, weight), weight)
    return summed_loss(HeadLoss(), states, head, targets)[0]
