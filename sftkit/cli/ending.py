"""The end of a process, and of the group that it is in."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn


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


def end_process(exit_code: int) -> NoReturn:
    """End the process after an error, with this exit code.

    With several processes, the interpreter's own end would be aborted by threads of torch, which still wait for the
    others.
    """
    dist = sys.modules.get("torch.distributed")
    if dist is None or not (dist.is_available() and dist.is_initialized()):
        sys.exit(exit_code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(exit_code)
