"""Where the processes of a run leave words for each other: a store that one of them, or torchrun, keeps."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import TypeVar

from sftkit.errors import Problem, RunError

T = TypeVar("T")

JOIN_SECONDS = 600.0  # in which all processes of a run have to start
ASK_SECONDS = 20.0  # after which a store that does not answer is gone


class Unreachable(Exception):  # noqa: N818 (not an error of the user)
    """The store does not answer: the process that keeps it was stopped or killed."""


class Meeting:
    """The words that the processes of one run leave for each other, by name.

    Each word is in a store of torch: torchrun's, or that of the process with rank 0. A call to a store whose process
    was stopped never returns, so all calls are made in a thread, and callers wait no longer than they want to.

    Args:
        rank: the number of this process.
        size: the number of processes.
        seconds: how long to wait for the store.

    Raises:
        RunError: if the store cannot be reached, or the port is in use.
    """

    def __init__(self, rank: int, size: int, seconds: float = JOIN_SECONDS) -> None:
        import torch.distributed as dist

        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.hosted = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        self._calls: queue.SimpleQueue[tuple[Callable[[], object], Future[object]] | None] = queue.SimpleQueue()
        wait = timedelta(seconds=seconds)
        try:
            self._store = dist.TCPStore(  # type: ignore[attr-defined]
                host, port, size, self.hosted, timeout=wait, wait_for_workers=False, multi_tenant=True
            )
        except (dist.DistError, RuntimeError) as error:
            what = f"process {rank} cannot meet the others at {host}:{port}: {str(error).splitlines()[0]}"
            fix = (
                "check that process 0 runs there, that the port is free and open, and that all have the same variables"
            )
            raise RunError(Problem(what, "MASTER_ADDR, MASTER_PORT", fix)) from error
        threading.Thread(target=self._work, name="sftkit-meeting", daemon=True).start()
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        begun = self._ask(lambda: self._store.add(f"sftkit/{attempt}/begun/{rank}", 1))
        self._prefix = f"sftkit/{attempt}/{begun}/"  # all processes begin the same runs, one after the other

    def set(self, name: str, text: str) -> None:
        """Leave a word."""
        self._ask(lambda: self._store.set(self._prefix + name, text))

    def get(self, name: str) -> str | None:
        """A word; None if nobody has left it."""
        return self.get_all([name])[0]

    def get_all(self, names: list[str]) -> list[str | None]:
        """Several words."""
        keys = [self._prefix + name for name in names]

        def read() -> list[str | None]:
            if self._store.check(keys):
                return [text.decode() for text in self._store.multi_get(keys)]
            return [self._store.get(key).decode() if self._store.check([key]) else None for key in keys]

        return self._ask(read)

    def first(self, name: str, text: str) -> str:
        """Leave a word, unless another process has left it; returns the one that is there."""
        return self._ask(lambda: self._store.compare_set(self._prefix + name, "", text).decode())

    def count(self, name: str, more: int = 0) -> int:
        """Add to a count, and return it."""
        return self._ask(lambda: self._store.add(self._prefix + name, more))

    def close(self) -> None:
        """End the thread."""
        self._calls.put(None)

    def _ask(self, call: Callable[[], T]) -> T:
        """Raises:
        Unreachable: if the store does not answer.
        """
        from torch.distributed import DistError

        answer: Future[T] = Future()
        self._calls.put((call, answer))  # type: ignore[arg-type]
        try:
            return answer.result(ASK_SECONDS)
        except (TimeoutError, DistError, RuntimeError) as error:
            raise Unreachable(str(error)) from error

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            call, answer = item
            try:
                answer.set_result(call())
            except BaseException as error:
                answer.set_exception(error)
