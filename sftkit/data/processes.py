"""Worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager

THREADS = ("RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM")  # variables that say how many threads tokenize


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def worker_processes(number: int) -> Iterator[Executor]:
    """An executor with a number of processes, which share the processors: each tokenizes with its part of the threads.

    `RAYON_NUM_THREADS` and `TOKENIZERS_PARALLELISM` override the number of threads.
    """
    # A fork is ready at once, and inherits what is imported; elsewhere than on Linux, system libraries do not bear it.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    threads = max(processors() // number, 1)
    with ProcessPoolExecutor(number, context, _begin, (threads, os.getpid())) as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(threads: int, parent: int) -> None:
    """Begin a worker: Ctrl-C is for the process that started it, and no worker outlives that process."""
    import logging
    import signal

    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # and not the live line of the terminal
    for name in ("", "sftkit"):
        if logging.getLogger(name).handlers:
            logging.getLogger(name).handlers = [logging.StreamHandler()]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if not any(name in os.environ for name in THREADS):
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        os.environ["TOKENIZERS_PARALLELISM"] = str(threads > 1).lower()
    if sys.platform == "linux":
        import ctypes

        set_death_signal, terminate = 1, signal.SIGTERM
        ctypes.CDLL(None).prctl(set_death_signal, terminate)
        if os.getppid() != parent:
            os._exit(1)
