"""A background thread that works ahead."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def thread_ahead() -> Iterator[ThreadPoolExecutor]:
    """A pool of one thread; leaving the context does not wait for it.

    A generator that is not exhausted may be closed by the garbage collector, in any thread and while that thread holds
    any lock. Waiting there for another thread, as the pool's own context does, can deadlock.
    """
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
