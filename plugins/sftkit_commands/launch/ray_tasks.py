"""An executor whose calls are tasks of a Ray cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any

import ray


class RayExecutor(Executor):
    """Runs calls as Ray tasks, each on whichever node has room. A call is repeated if its node or process dies.

    Args:
        cpus: that each call takes.
        retries: how often a call is repeated.
    """

    def __init__(self, cpus: float = 1.0, retries: int = 3) -> None:
        self._task = ray.remote(num_cpus=cpus, max_retries=retries)(_call)
        self._functions: dict[int, tuple[Any, Any]] = {}
        self._open: set[Any] = set()
        self._lock = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        """As of `concurrent.futures.Executor`. The function is sent to the cluster once, not with every call."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        reference = self._task.remote(self._sent(fn), arguments, options)
        with self._lock:
            self._open.add(reference)
        reference.future().add_done_callback(lambda done: self._end(reference, done, future))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As of `concurrent.futures.Executor`; tasks are cancelled also if they run."""
        with self._lock:
            waiting = list(self._open)
        if cancel_futures:
            for reference in waiting:
                ray.cancel(reference)
        if wait and waiting:
            ray.wait(waiting, num_returns=len(waiting))

    def _sent(self, fn: Callable[..., Any]) -> Any:
        if id(fn) not in self._functions:
            self._functions[id(fn)] = fn, ray.put(fn)  # the function is kept, so that no other gets its id
        return self._functions[id(fn)][1]

    def _end(self, reference: Any, done: Future[Any], future: Future[Any]) -> None:
        with self._lock:
            self._open.discard(reference)
        if (error := done.exception()) is not None:  # Ray's own: those of the call are returned
            future.set_exception(BrokenExecutor(str(error)))
            return
        result, raised = done.result()
        if raised is None:
            future.set_result(result)
        else:
            future.set_exception(raised)


def _call(fn: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
    """Call a function; returns its result and its error, which Ray would wrap."""
    try:
        return fn(*arguments, **options), None
    except Exception as error:
        return None, error
