"""Private memory of the order of the rows, per process: of torch's random sampler, and of sftkit's orders.

Each case runs in a process of its own, which goes through batches at the beginning, in the middle and at the end.
"""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

BATCH, REPLICAS = 8, 8
ORDERS = ("torch", "random", "sequential", "group_by_length", "batch_rebalance")


def private_bytes() -> int:
    """Bytes of memory that this process shares with no other."""
    import psutil

    return int(psutil.Process().memory_full_info().uss)


def measure(order: str, rows: int) -> dict[str, Any]:
    """Memory and time of the batches of one of eight processes.

    Args:
        order: one of `ORDERS`.
        rows: how many.

    Returns:
        ``bytes`` that the batches take at most, also ``per_row``, and the seconds to the ``first`` batch and to one in
        the ``middle``, where a resumed run begins.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (order, rows))


def _measured(order: str, rows: int) -> dict[str, Any]:
    import numpy as np
    import torch
    from transformers.trainer_pt_utils import BatchRebalanceSampler  # noqa: F401 (not counted)

    from sftkit.training.order import Grouped, RowOrder, Shuffled
    from sftkit.training.sampler import Rebalanced, ReplicaBatches, Share

    share = Share(BATCH, REPLICAS, 3)
    torch.randperm(10)
    next(iter(ReplicaBatches(Shuffled(1000, 0), share)))
    before, began = private_bytes(), time.perf_counter()
    if order == "torch":
        made: Any = torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(range(rows)), BATCH, False)
    else:
        lengths = np.full(rows, 100, np.int32) if order in ("group_by_length", "batch_rebalance") else None
        if order == "batch_rebalance":
            assert lengths is not None
            made = Rebalanced(Shuffled(rows, 0), share, False, lengths)
        elif order == "group_by_length":
            assert lengths is not None
            made = ReplicaBatches(Grouped(lengths, share.step, 0), share)
        else:
            made = ReplicaBatches(Shuffled(rows, 0) if order == "random" else RowOrder(rows), share)
    batches = iter(made)
    next(batches)
    first = time.perf_counter() - began
    used, middle = private_bytes() - before, None
    if order != "torch":
        for row in (rows // 2, rows - 100 * share.step):
            began = time.perf_counter()
            made.seek(row)
            batches = iter(made)
            next(batches)
            middle = middle or time.perf_counter() - began
            for _ in range(90):
                next(batches)
            used = max(used, private_bytes() - before)
    return {"order": order, "rows": rows, "bytes": used, "per_row": used / rows, "first": first, "middle": middle}
