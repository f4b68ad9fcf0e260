"""A background thread that works ahead, and what takes its place where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any


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


class SameThread(Executor):
    """Runs what is submitted at once, in the thread that submits it."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """The result as a future, or the exception."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # which the future raises
            future.set_exception(error)
        return future
