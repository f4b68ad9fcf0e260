"""The processes of a run: which one this is, how many there are, and what the main one says."""

from __future__ import annotations

from typing import TypeVar

from sftkit.run.launcher import number

T = TypeVar("T")


def rank() -> int:
    """The number of this process, from 0, as the launcher sets it."""
    return number("RANK", 0)


def world_size() -> int:
    """The number of processes of the run, as the launcher sets it."""
    return number("WORLD_SIZE", 1)


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
