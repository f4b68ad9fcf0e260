"""The processes of a run: which one this is, how many there are, and how they end together."""

from __future__ import annotations

import os
import time
from typing import TypeVar

from sftkit.errors import Problem, TrainingError

T = TypeVar("T")

ANSWER_SECONDS = 5.0  # in which a process that also waits for others notices that one has failed
_WAITS = "waits for another process"


def rank() -> int:
    """The number of this process, from 0, as the launcher sets it."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes of the run, as the launcher sets it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process writes files and shows output."""
    return rank() == 0


def from_main_process(value: T) -> T:
    """The main process's value, in every process of the group."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return value
    from accelerate.utils import broadcast_object_list

    [value] = broadcast_object_list([value])
    return value


def end_process_group() -> None:
    """Wait for the other processes, if there are any, and destroy the process group.

    If this is left to the interpreter's exit, gloo's threads may release tensors after Python has gone, and abort.
    """
    import gc

    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        gc.collect()  # the trainer's wrapped model holds the group
        dist.destroy_process_group()


def blamed(error: Exception) -> TrainingError | None:
    """The failure of another process that made this one fail, by its number; None if this one failed by itself.

    Each process leaves its reason in the group's store. One that only waited for others has none of its own, and one
    that leaves no reason hangs or was killed.

    Args:
        error: the error that ends this process.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or world_size() == 1:
        return None
    waited = isinstance(error, dist.DistError | RuntimeError) and _of_collective(str(error))
    reason = _WAITS if waited else f"{type(error).__name__}: {error}"
    store = dist.distributed_c10d._get_default_store()
    others = {number: f"sftkit/ended/{number}" for number in range(world_size()) if number != rank()}
    try:
        store.set(f"sftkit/ended/{rank()}", reason)
        if not waited:
            return None
        until = time.monotonic() + ANSWER_SECONDS
        while not store.check([*others.values()]) and time.monotonic() < until:
            time.sleep(0.1)
        reasons = {number: store.get(key).decode() if store.check([key]) else "" for number, key in others.items()}
    except dist.DistError:  # the store is gone with the process that keeps it
        return None
    failed = [f"process {number} failed: {text}" for number, text in reasons.items() if text not in ("", _WAITS)]
    silent = [
        f"process {number} does not respond: it hangs, or was killed" for number, text in reasons.items() if not text
    ]
    if not (found := failed or silent):
        return None
    fix = "read its output; processes wait for each other for train.ddp_timeout seconds"
    return TrainingError([Problem(what, "training", fix) for what in found])


def _of_collective(message: str) -> bool:
    """Whether an error says that other processes could not be reached."""
    return any(part in message for part in ("gloo", "Gloo", "NCCL", "Timed out", "Connection closed by peer"))
