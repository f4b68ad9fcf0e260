"""Workers that run jobs, whatever they are: processes of this machine, or tasks of a cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass
from typing import TypeVar

from sftkit.errors import Problem, RunError, SftkitError

AHEAD = 2  # jobs of each worker that are sent before their results are used
Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Pool:
    """Workers that run jobs.

    Attributes:
        executor: runs them: processes, or tasks of a cluster.
        size: how many it runs at once.
    """

    executor: Executor
    size: int

    def in_order(
        self, work: Callable[[Job], Result], jobs: Iterable[Job]
    ) -> Iterator[tuple[Job, Result | SftkitError]]:
        """The jobs in their order, each with its outcome; only a few are under way at any time.

        Args:
            work: does a job. It is pickled, as are the jobs.
            jobs: the jobs; each is made shortly before it is sent.

        Raises:
            RunError: if a worker dies.
        """
        sent: deque[tuple[Job, Future[Result]]] = deque()

        def outcome() -> tuple[Job, Result | SftkitError]:
            job, future = sent.popleft()
            try:
                return job, future.result()
            except SftkitError as error:
                return job, error

        try:
            for job in jobs:
                sent.append((job, self.executor.submit(work, job)))
                if len(sent) >= self.size * AHEAD:
                    yield outcome()
            while sent:
                yield outcome()
        except BrokenExecutor as error:
            what = "a worker process was killed, perhaps because memory ran out"
            fix = "use fewer --workers, or free memory; nothing that was written is used"
            raise RunError(Problem(what, "the preparation of the data", fix)) from error
        finally:
            for _, future in sent:
                future.cancel()
