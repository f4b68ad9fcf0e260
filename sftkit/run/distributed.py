"""The end of the group of processes."""

from __future__ import annotations


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
