"""How many operations a step takes, and how many the device can do.

Model FLOPs as in PaLM (Chowdhery et al., 2022, arXiv 2204.02311, appendix B): 6 a weight and token for forward and
backward, and 12·L·H·Q·T a token for attention (L layers, H heads of Q numbers, T positions). Only necessary work is
counted: the causal half of attention, within documents; the head for trained tokens alone; 4 a frozen weight under
LoRA, which needs no gradient of its own, and 6 a weight of an adapter. Recomputed activations count once.
"""

from __future__ import annotations

import time
from typing import Any

from gpu.cases import parameters

#: Dense bfloat16 without sparsity, TFLOP/s, by a part of the device's name; from NVIDIA's data sheets.
PEAKS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "H200": 989.4,
    "B200": 2250.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


def step_flops(shape: dict[str, Any], train: str, tokens: int, trained: int, squares: int, adapters: int = 0) -> float:
    """Operations of a forward and backward.

    Args:
        shape: the model's configuration.
        train: ``full`` or ``lora``.
        tokens: of the step, without padding.
        trained: those of them that are trained.
        squares: sum of the squared lengths of the documents.
        adapters: weights of the adapters.
    """
    layers, head = parameters(shape)
    width = shape["num_attention_heads"] * shape["head_dim"]
    attention = 6 * shape["num_hidden_layers"] * width * squares
    each = 6 if train == "full" else 4
    return float(each * (layers * tokens + head * trained) + 6 * adapters * tokens + attention)


def peak_flops(device: str) -> tuple[float, str]:
    """Operations a second that the device can do, and the source of the number."""
    import torch

    if device == "cuda":
        name = torch.cuda.get_device_name()
        for part, tflops in PEAKS.items():
            if part in name:
                return tflops * 1e12, "data sheet"
    return _measured(device), "measured, a matrix product"


def _measured(device: str) -> float:
    import torch

    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (512, torch.float32)
    one = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        one @ one
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def count(row: Any) -> tuple[int, int, int]:
    """Tokens of a row, trained tokens, and the sum of the squared lengths of its documents."""
    import numpy as np

    labels = np.asarray(row["labels"])
    size = len(row["input_ids"])
    if "seq_lengths" in row:
        lengths = np.asarray(row["seq_lengths"])
    elif "position_ids" in row:
        lengths = np.diff(np.append(np.flatnonzero(np.asarray(row["position_ids"]) == 0), size))
    else:
        lengths = np.array([size])
    firsts = np.cumsum(lengths) - lengths  # never trained, whatever their label: nothing comes before them
    trained = int((labels != -100).sum() - (labels[firsts] != -100).sum())
    return size, trained, int((lengths.astype(np.int64) ** 2).sum())


def adapter_widths(shape: dict[str, Any]) -> int:
    """Inputs and outputs of all linear layers together: the weights of an adapter, divided by its rank."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    queries = shape["num_attention_heads"] * shape["head_dim"]
    keys = shape["num_key_value_heads"] * shape["head_dim"]
    layer = 2 * (hidden + queries) + 2 * (hidden + keys) + 3 * (hidden + inner)
    return int(shape["num_hidden_layers"] * layer)
