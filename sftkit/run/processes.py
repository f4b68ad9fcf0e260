"""The processes of a run as one: they meet, they wait for each other, and they end together for the same reason."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Any, NamedTuple

from sftkit.errors import ConfigError, Interrupted, OtherProcessError, Problem, SftkitError, TrainingError
from sftkit.ranks import rank, world_size
from sftkit.run.launcher import launch_problems, shows_launch_problems
from sftkit.run.meeting import JOIN_SECONDS, Meeting, Unreachable
from sftkit.run.watch import Watch, described, waits

MAIN_FIRST = 1.0  # seconds in which the main process reports what all have found
ANSWER_SECONDS = 6.0  # in which a process that also waits for others notices that one has failed
GRACE = 10.0  # seconds after the failure of a process in which the others end in order
FAILED = "failed"


class Failure(NamedTuple):
    """What ends a run.

    Attributes:
        rank: the process that has noticed it, and shows it.
        what: what has failed, in which process.
        exit_code: that of all processes.
    """

    rank: int
    what: str
    exit_code: int


class Processes(AbstractContextManager["Processes"]):
    """The processes of a run, of which this is one.

    As a context, it makes all end together: an error that leaves it in one process ends the others with the same exit
    code. The first one to fail shows its error; elsewhere it is an `OtherProcessError`. A process that cannot raise it,
    since it is stuck, is ended ten seconds later. With a single process, none of it happens.

    Attributes:
        size: how many there are.
        record: the run's manifest, while there is one.

    Raises:
        ConfigError: when it is entered, if the variables of the launcher contradict each other.
        RunError: when it is entered, if the processes cannot meet.
    """

    def __init__(self, seconds: float = JOIN_SECONDS) -> None:
        self._seconds = seconds
        self._meeting: Meeting | None = None
        self._watch: Watch | None = None
        self._failure: Failure | None = None
        self._noticed, self._settled, self._lock = 0.0, False, threading.Lock()
        self._asked = Counter[str]()
        self.size = 1
        self.record: Any = None

    def __enter__(self) -> Processes:
        if problems := launch_problems():
            raise ConfigError(problems) if shows_launch_problems() else OtherProcessError(problems, 2)
        self._rank, self.size = rank(), world_size()
        if self.size > 1:
            self._meeting = Meeting(self._rank, self.size, self._seconds)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Raises:
        OtherProcessError: if another process has ended the run.
        TrainingError: if another process does not respond.
        """
        if self._meeting is None:
            return
        try:
            if error is None:
                self.meet("the end")
            elif (shown := self.explained(error)) is not error:
                raise shown from error
        finally:
            self._leave(failed=error is not None)

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files and shows output."""
        return self._meeting is None or self._rank == 0

    def watch(self, timeout: float) -> None:
        """Notice a process that stalls.

        Args:
            timeout: seconds in which each process has to do something; see `Watch`.
        """
        if self._meeting is None or self._watch is not None:
            return
        self._watch = Watch(self._meeting, self._rank, self.size, timeout, self._fail, self._look)
        self._watch.start()

    def mark(self, doing: str) -> None:
        """Note what this process does, which is a sign that it goes on."""
        if self._watch is not None:
            self._watch.mark(doing)

    def from_main(self, name: str, text: str) -> str:
        """The main process's text, in every process."""
        if self._meeting is None:
            return text
        self._asked[name] += 1
        key = f"{name}/{self._asked[name]}"
        if self._rank == 0:
            self._meeting.set(key, text)
            return text
        return self._wait(lambda meeting: meeting.get(key), f"{name} of process 0")

    def meet(self, name: str) -> None:
        """Wait until all processes are here, however long it takes one that is busy.

        Raises:
            OtherProcessError: if another process has ended the run.
        """
        self.count(name, 0)

    def count(self, name: str, number: int) -> int:
        """The sum of the numbers of all processes, which wait for each other."""
        if self._meeting is None:
            return number
        self._asked[name] += 1
        key = f"{name}/{self._asked[name]}"
        self._meeting.count(f"sum/{key}", number)
        self._meeting.count(f"number/{key}", 1)
        self._wait(lambda meeting: meeting.count(f"number/{key}") >= self.size, name)
        return self._meeting.count(f"sum/{key}")

    def explained(self, error: BaseException) -> BaseException:
        """What ends this process: its own error, or that of the process that failed first.

        Args:
            error: what this process has raised.
        """
        self._settled = self._settled or isinstance(error, OtherProcessError)
        if self._meeting is None or self._settled or isinstance(error, GeneratorExit):
            return error
        waited = isinstance(error, Exception) and _of_collective(error)
        try:
            failure = self._first(error, waited)
        except (Unreachable, OtherProcessError):
            failure = self._failure or Failure(self._rank, "process 0 does not respond: it hangs, or was killed", 3)
        self._settled = True
        if failure.rank != self._rank:
            return OtherProcessError(Problem(failure.what, "training"), failure.exit_code)
        own = not waited and not isinstance(error, Unreachable) and self._failure is None
        return error if own else TrainingError(Problem(failure.what, "training", _FIX))

    def _first(self, error: BaseException, waited: bool) -> Failure:
        """The first failure of the run: that of another process, or this error."""
        assert self._meeting is not None
        if isinstance(error, Interrupted) and error.agreed:
            self.meet("the interruption")
        dead = self._watch.dead() if self._watch is not None else []
        known = self._failure or self._answer(0.0 if dead else ANSWER_SECONDS if waited else MAIN_FIRST)
        if known is not None:
            return known
        if dead or waited:
            return self._claim(self._blamed(dead), TrainingError.exit_code)
        return self._claim(_words(error, self._rank), _exit_code(error))

    def _answer(self, seconds: float) -> Failure | None:
        """What another process has left within some seconds; the main process does not wait for one."""
        until = time.monotonic() + (seconds if self._rank or seconds > MAIN_FIRST else 0.0)
        while (found := self._found()) is None and time.monotonic() < until:
            if seconds > MAIN_FIRST and self._watch is not None and self._watch.dead():
                return self._found()
            time.sleep(0.1)
        return found

    def _found(self) -> Failure | None:
        assert self._meeting is not None
        text = self._meeting.get(FAILED)
        return Failure(*json.loads(text)) if text else None

    def _blamed(self, dead: list[int]) -> str:
        """Which process the others wait for, in words."""
        assert self._meeting is not None
        if self._watch is not None and (dead := dead or self._watch.dead()):
            return f"process {dead[0]} does not respond: it was killed, such as for lack of memory"
        others = [number for number in range(self.size) if number != self._rank]
        before = self._meeting.get_all([f"beat/{number}" for number in others])
        time.sleep(2 * self._watch.beat if self._watch is not None else 0)
        after = self._meeting.get_all([f"beat/{number}" for number in others])
        signs = list(zip(others, before, after, strict=True))
        silent = [number for number, old, new in signs if old == new]
        if silent:
            named = ", ".join(map(str, silent))
            return f"process {named} does not respond: it hangs, or was killed"
        busy = [f"process {number} does not respond: {described(new)}" for number, _, new in signs if not waits(new)]
        return "; ".join(busy) or "the processes wait for each other: " + "; ".join(
            f"process {number}: {described(new)}" for number, _, new in signs
        )

    def _claim(self, what: str, exit_code: int) -> Failure:
        """The first failure of the run, which is this one unless another process was faster."""
        assert self._meeting is not None
        with self._lock:
            made = Failure(self._rank, what, exit_code)
            first = Failure(*json.loads(self._meeting.first(FAILED, json.dumps(made))))
        if first == made:
            _report_to_torchrun(what)
        return first

    def _wait(self, found: Any, name: str) -> Any:
        assert self._meeting is not None
        if self._watch is not None:
            self._watch.waiting = True
        pause, until = 0.01, time.monotonic() + JOIN_SECONDS
        try:
            while (value := found(self._meeting)) in (None, False):
                if (failure := self._failure or self._found()) is not None:
                    raise OtherProcessError(Problem(failure.what, "training"), failure.exit_code)
                if self._watch is None and time.monotonic() > until:
                    what = f"process {self._rank} waits for {name}, and not all processes have arrived"
                    raise TrainingError(Problem(what, "training", _FIX))
                time.sleep(pause)
                pause = min(2 * pause, 0.5)
            return value
        finally:
            if self._watch is not None:
                self._watch.waiting = False

    def _look(self) -> None:
        """In the watch's thread: end this process if another has failed, and it does not notice itself."""
        assert self._meeting is not None
        # One that this process has claimed is its own error, which it raises.
        if self._failure is None and (found := self._found()) is not None and found.rank != self._rank:
            self._failure, self._noticed = found, time.monotonic()
            self._meeting.count("noticed", 1)
        if self._failure is not None and not self._settled and time.monotonic() - self._noticed > GRACE:
            self._end(self._failure)

    def _fail(self, what: str) -> None:
        """In the watch's thread: another process, or this one, has failed."""
        if self._failure is not None:
            return
        with suppress(Unreachable):
            self._failure, self._noticed = self._claim(what, TrainingError.exit_code), time.monotonic()
            return
        self._end(Failure(self._rank, what, TrainingError.exit_code))

    def _end(self, failure: Failure) -> None:
        """End this process, whose thread of the run is stuck."""
        if self.record is not None:
            with suppress(OSError):
                self.record.failed(failure.what)
        if failure.rank == self._rank:
            error = Problem(failure.what, "training", _FIX)
            print(f"process {self._rank}: error: {error}", file=sys.stderr, flush=True)  # noqa: T201
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(failure.exit_code)

    def _leave(self, failed: bool) -> None:
        """Say that this process has ended; the one that keeps the store waits until the others know."""
        assert self._meeting is not None
        with suppress(Unreachable):
            self._meeting.set(f"left/{self._rank}", "1")
            left = self._meeting.count("left", 1)
            until = time.monotonic() + (GRACE if self._meeting.hosted else 0)
            while left < self.size and time.monotonic() < until:
                if failed and self._meeting.count("noticed") >= self.size - 1:
                    break
                time.sleep(0.05)
                left = self._meeting.count("left")
        if self._watch is not None:
            self._watch.stop()
        self._meeting.close()


_FIX = "read its output; a process has to do something within run.timeout, else it has failed"


def _report_to_torchrun(what: str) -> None:
    """Write what has failed into the file from which torchrun takes the error in its summary."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"py_callstack": what, "timestamp": str(int(time.time()))}
        with suppress(OSError), open(file, "w", encoding="utf-8") as opened:
            json.dump({"message": {"message": what, "extraInfo": details}}, opened)


def _words(error: BaseException, rank: int) -> str:
    if isinstance(error, Interrupted):
        return str(error)
    named = isinstance(error, SftkitError)
    text = str(error) if named else f"{type(error).__name__}: {error}"
    return f"process {rank} failed: {text}"


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SftkitError | Interrupted):
        return error.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _of_collective(error: Exception) -> bool:
    """Whether an error says that other processes could not be reached."""
    import torch.distributed as dist

    if isinstance(error, Unreachable):
        return True
    parts = ("gloo", "Gloo", "NCCL", "Timed out", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, dist.DistError | RuntimeError) and any(part in str(error) for part in parts)
