"""The processes of a run: which one this is, how many there are, and how they end together."""

from __future__ import annotations

import os


def is_main_process() -> bool:
    """Whether this is the process that writes and shows; the launcher sets RANK."""
    return int(os.environ.get("RANK", "0")) == 0


def end_process_group() -> None:
    """Wait for the other processes, if there are any, and end what connects them.

    Left to the interpreter's end, gloo's threads may let go of tensors when there is no Python any more, and abort.
    """
    import gc

    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        gc.collect()  # a trainer's wrapped model holds the group
        dist.destroy_process_group()
