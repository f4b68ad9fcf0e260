"""Notices which process of a run was killed, was stopped, or does nothing."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import psutil

from sftkit.run.meeting import Meeting, Unreachable

BEAT = 5.0  # seconds between the signs of life of a process, for long timeouts
LOOK = 1.0  # seconds between looks at whether another process has failed
BUSY = 0.02  # share of a core that a process uses which computes
READS = 1e6  # bytes in a second that a process reads or writes which loads or saves
#: Where a process is that waits for others: parts of the name of the file, in the innermost frame of Python, or in the
#: one before it where that is a call of an operator.
_WAITS = (
    *("torch/distributed/", "torch/nn/parallel/distributed.py", "torch/autograd/graph.py"),
    *("/filelock/", "sftkit/training/agreement.py"),
)
_OPERATORS = "torch/_ops.py"


@dataclass
class Watch:
    """A thread that gives signs of life, and looks for those of the others.

    Each process looks for the signs of the one before it, and for the processes of its machine, so that the store is
    asked little. What a process does itself is what it alone can know: it does nothing if it neither computes, reads
    nor writes, and does not wait for another process.

    Args:
        meeting: where the processes leave words.
        rank: the number of this process.
        size: the number of processes.
        timeout: seconds after which a process that gives no sign of life, or does nothing, has failed.
        failed: called with what was found.
        look: called each second.
    """

    meeting: Meeting
    rank: int
    size: int
    timeout: float
    failed: Callable[[str], None]
    look: Callable[[], None]
    doing: str = "begins"
    waiting: bool = False
    watched: int = field(default_factory=threading.get_ident)
    _ended: threading.Event = field(default_factory=threading.Event)
    _moved: bool = False

    def __post_init__(self) -> None:
        self._mates = Mates({*range(self.size)} - {self.rank})

    def start(self) -> None:
        """Start the thread."""
        here = psutil.Process()
        self.meeting.set(f"host/{self.rank}", f"{socket.gethostname()} {here.pid} {here.create_time()}")
        threading.Thread(target=self._run, name="sftkit-watch", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()

    def mark(self, doing: str) -> None:
        """Note what this process does now."""
        self.doing, self._moved = doing, True

    @property
    def beat(self) -> float:
        """Seconds between signs of life."""
        return min(BEAT, self.timeout / 5)

    def _run(self) -> None:
        activity, before = _Activity(), (self.rank - 1) % self.size
        last, beats, active, sign = 0.0, 0, time.monotonic(), ("", time.monotonic())
        answered = time.monotonic()
        while not self._ended.wait(min(LOOK, self.beat)):
            now = time.monotonic()
            try:
                self.look()
                if now - last < self.beat:
                    continue
                place, waits = self._place()
                if activity.since(now - last) or self._moved or waits:
                    active, self._moved = now, False
                beats, last = beats + 1, now
                self.meeting.set(f"beat/{self.rank}", f"{beats}\t{int(waits)}\t{self.doing}, at {place}")
                found, left = self.meeting.get_all([f"beat/{before}", f"left/{before}"])
                answered = time.monotonic()
                if found != sign[0] or left:
                    sign = (found or "", now)
                if dead := self.dead():
                    self.failed(f"process {dead[0]} does not respond: it was killed, such as for lack of memory")
                elif now - active >= self.timeout:
                    what = f"process {self.rank} has done nothing for {now - active:.0f} s: {self.doing}, at {place}"
                    self.failed(what)
                elif now - sign[1] >= self.timeout:
                    what = f"process {before} does not respond: it hangs, or was killed; for {now - sign[1]:.0f} s"
                    self.failed(f"{what}, it gives no sign of life; before, it was: {described(sign[0])}")
            except Unreachable:
                if time.monotonic() - answered >= self.timeout:
                    self.failed("process 0 does not respond: it hangs, or was killed")

    def _place(self) -> tuple[str, bool]:
        """Where this process is, and whether it waits for others there."""
        frame = sys._current_frames().get(self.watched)
        if frame is None:
            return "its end", False
        file = _file(frame)
        if file.endswith(_OPERATORS) and frame.f_back is not None:
            frame = frame.f_back
            file = _file(frame)
        waits = self.waiting or any(part in file for part in _WAITS)
        return f"{'/'.join(file.split('/')[-2:])}:{frame.f_lineno} in {frame.f_code.co_name}", waits

    def dead(self) -> list[int]:
        """The processes of this machine that have ended without a word."""
        return self._mates.dead(self.meeting)


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename.replace(os.sep, "/")


def described(beat: str | None) -> str:
    """What a process did when it gave this sign of life."""
    return beat.split("\t")[-1] if beat else "not yet there"


def waits(beat: str | None) -> bool:
    """Whether a process waited for others when it gave this sign of life."""
    return beat is not None and beat.split("\t")[1:2] == ["1"]


class _Activity:
    """Whether this process and its children compute, read or write."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._before = self._now()

    def since(self, seconds: float) -> bool:
        """Whether they did in the last seconds."""
        before, self._before = self._before, self._now()
        computed, moved = (new - old for new, old in zip(self._before, before, strict=True))
        return computed >= BUSY * seconds or abs(moved) >= READS * seconds

    def _now(self) -> tuple[float, float]:
        times = self._process.cpu_times()
        computed = times.user + times.system + times.children_user + times.children_system
        with suppress(psutil.Error):
            for child in self._process.children(recursive=True):
                with suppress(psutil.Error):
                    spent = child.cpu_times()
                    computed += spent.user + spent.system
        moved: Any = ()
        if hasattr(self._process, "io_counters"):  # not on macOS
            with suppress(psutil.Error):
                moved = self._process.io_counters()[2:]  # bytes, and characters where the system counts them
        return computed, float(sum(moved))


class Mates:
    """The other processes of this machine.

    Args:
        others: the numbers of the other processes of the run.
    """

    def __init__(self, others: set[int]) -> None:
        self._unknown, self._known = others, dict[int, psutil.Process]()

    def dead(self, meeting: Meeting) -> list[int]:
        """Those that have ended without a word."""
        numbers = sorted(self._unknown)
        for number, word in zip(numbers, meeting.get_all([f"host/{number}" for number in numbers]), strict=True):
            if word is None:
                continue
            self._unknown.discard(number)
            host, pid, created = word.split()
            with suppress(psutil.Error):  # one of another container is not seen
                if host == socket.gethostname() and (found := psutil.Process(int(pid))).create_time() == float(created):
                    self._known[number] = found
        ended = [number for number, process in self._known.items() if _has_ended(process)]
        words = meeting.get_all([f"left/{number}" for number in ended])
        return [number for number, word in zip(ended, words, strict=True) if word is None]


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True
