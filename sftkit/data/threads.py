"""A thread for what is prepared ahead."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def thread_ahead() -> Iterator[ThreadPoolExecutor]:
    """A pool of one thread, which is not waited for at the end.

    A generator that is left half-way may be ended by the garbage collector, in any thread and while that holds any
    lock: waiting for another thread there, as the pool's own context does, can wait for ever.
    """
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
