"""The run directory: which run is there, whether this one may begin or continue, and what it leaves."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

from sftkit.checkpoints import Choice, newest
from sftkit.checkpoints.files import partial_of, write_text
from sftkit.checkpoints.space import full_disk
from sftkit.config.source import ConfigSource
from sftkit.errors import Interrupted, OtherProcessError, Problem, RunError, SftkitError, TrainingError
from sftkit.ranks import is_main_process
from sftkit.run.changes import Change, allows, configuration_changes, data_changes, grown, waits, weight_changes
from sftkit.run.config_file import CONFIG
from sftkit.run.lock import LOCK, holder, locked
from sftkit.run.manifest import (
    DONE,
    FAILED,
    INTERRUPTED,
    MANIFEST,
    RUNNING,
    new_part,
    now,
    read_manifest,
    write_manifest,
)
from sftkit.run.place import launch
from sftkit.run.processes import Processes
from sftkit.run.written import remove_run, snapshot

logger = logging.getLogger("sftkit")

Resume: TypeAlias = bool | Literal["auto"]
OTHER = "choose another --output DIR"


def default_directory(source: ConfigSource, continues: bool | str) -> str:
    """A new directory under ``runs``, named by the time, with a number if there is one of this name.

    Args:
        source: the configuration.
        continues: whether a run is resumed or replaced: the one whose ``config.yaml`` is among the files, if it is.
    """
    for file in source.files if continues else ():
        if file.name == CONFIG and read_manifest(file.parent) is not None:
            return str(file.parent)
    name = f"runs/{datetime.now():%Y%m%d-%H%M%S}"
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(each for each in itertools.chain([name], numbered) if not os.path.exists(each))


@dataclass(frozen=True)
class EarlierRun:
    """The run in a directory that is resumed.

    Attributes:
        manifest: its manifest.
        choice: the checkpoint that it continues from, and the newer ones that are not complete.
    """

    manifest: dict[str, Any]
    choice: Choice

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint that it continues from; None if it starts again, since nothing was saved yet."""
        return self.choice.path

    @property
    def step(self) -> int:
        """The step that it continues from."""
        return int(self.choice.manifest.get("step", 0))

    def finished(self, new: dict[str, Any]) -> bool:
        """Whether the run is done, and its resumption would add no steps."""
        return self.manifest["status"] == DONE and not grown(self.manifest, new) and not waits(self.manifest, new)

    def changes(self, new: dict[str, Any]) -> list[Change]:
        """What has changed; data and weights only as far as the new manifest has them."""
        found = list(configuration_changes(self.manifest, new))
        found += data_changes(self.manifest, new) if new["data"] else ()
        found += weight_changes(self.manifest, new) if new["weights"] else ()
        return found

    def refusals(self, new: dict[str, Any], allowed: Iterable[str]) -> list[Problem]:
        """The changes that are not allowed."""
        return [change.problem for change in self.changes(new) if change.final or not allows(allowed, change.name)]


@dataclass(frozen=True)
class RunDirectory:
    """The directory of one run."""

    path: Path

    def check(self, resume: Resume, overwrite: bool) -> list[Problem]:
        """Problems of running in this directory; checked before anything is loaded."""
        where = str(self.path)
        if resume and overwrite:
            return [Problem("--resume and --overwrite cannot be used together", where, "choose one")]
        if not is_main_process():
            return []
        try:
            where.encode()  # not so if the locale lacks the characters of the name, which libraries need as UTF-8
            return self._problems(where, resume, overwrite)
        except (OSError, ValueError) as error:  # such as a name that is too long
            return [Problem(f"the directory cannot be used: {error}", repr(where), OTHER)]

    def _problems(self, where: str, resume: Resume, overwrite: bool) -> list[Problem]:
        found = read_manifest(self.path)
        if resume is True and found is None:
            return [
                Problem(
                    "there is no run to resume",
                    where,
                    "name the run's directory with --output, or begin it without --resume",
                )
            ]
        if self.path.exists() and not self.path.is_dir():
            return [Problem("the output is a file", where, "choose a directory")]
        begun = {LOCK, partial_of(self.path / MANIFEST).name}  # all that a run has written if it is killed at once
        if found is None and self.path.is_dir() and any(entry.name not in begun for entry in self.path.iterdir()):
            fix = "choose an empty or a new directory; --overwrite replaces only a run"
            return [Problem("the output directory is not empty, and does not hold a run", where, fix)]
        if found is not None and not resume and not overwrite:
            return [self._occupied(where)]
        parent = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not parent.is_dir():
            return [Problem(f"{parent} is a file", where, "choose another directory")]
        if not os.access(parent, os.W_OK | os.X_OK):
            return [Problem(f"{parent} is not writable", where, "choose another directory")]
        if resume and found is not None and found["status"] != DONE:
            return self._checkpoint_problems(newest(self.path, contents=False), resume)
        return []

    def _occupied(self, where: str) -> Problem:
        if who := holder(self.path):
            return Problem(f"{who} is running in this directory", where, f"wait for its end, stop it, or {OTHER}")
        fix = f"continue it with --resume, replace it with --overwrite, or {OTHER}"
        return Problem("the output directory holds a run already", where, fix)

    def _checkpoint_problems(self, choice: Choice, resume: Resume) -> list[Problem]:
        """Problems of continuing a run; none if it can start again, since it has not saved anything."""
        if choice.path is not None or (resume == "auto" and not choice.rejected):
            return []
        again = "--overwrite" if choice.rejected else "--resume auto or --overwrite"
        fix = f"start again with {again}"
        problem = Problem("the run has no checkpoint to resume from", str(self.path), fix)
        return [*(Problem(why, str(path)) for path, why in choice.rejected), problem]

    def locked(self) -> AbstractContextManager[None]:
        """Holds the lock of the directory.

        Raises:
            RunError: if another run holds it, or the directory cannot be written to.
        """
        return locked(self.path) if is_main_process() else nullcontext()

    def earlier(self, resume: Resume, contents: bool) -> EarlierRun | None:
        """The run to resume, if there is one.

        Args:
            resume: as of `Pipeline`.
            contents: verify every byte of the checkpoint that it continues from.

        Raises:
            RunError: if the run is not done and has no complete checkpoint, with the reason of each.
        """
        found = read_manifest(self.path) if resume else None  # none for a process on a machine of its own
        if found is None:
            return None
        choice = newest(self.path, contents and is_main_process())
        if found["status"] != DONE and (problems := self._checkpoint_problems(choice, resume)):
            raise RunError(problems)
        return EarlierRun(found, choice)

    def no_checkpoint(self, earlier: EarlierRun) -> RunError:
        """The error that there is nothing to continue from, with the reason why each checkpoint is not used."""
        return RunError(self._checkpoint_problems(earlier.choice, resume=True))

    def begin(
        self,
        manifest: dict[str, Any],
        earlier: EarlierRun | None,
        changes: dict[str, str],
        config: str,
        processes: Processes,
    ) -> RunRecord:
        """Begin a run, or its next part, with everything loaded: what an earlier run has written is removed now.

        Args:
            manifest: of this run.
            earlier: the run that it continues, which is not removed.
            changes: what was changed since then, in words, by name.
            config: the text of ``config.yaml``.
            processes: those of the run.
        """
        record = RunRecord(self.path, dict(manifest), processes)
        if not is_main_process():
            return record
        parts, step = [], 0
        if earlier is not None:
            *before, last = earlier.manifest["parts"]
            if last["status"] == RUNNING:  # it was killed
                last = {**last, "status": INTERRUPTED}
            parts, step = [*before, last], earlier.step
            record.values["files"] = earlier.manifest["files"]
        elif (known := read_manifest(self.path)) is not None:
            remove_run(self.path, known)
        self.path.mkdir(parents=True, exist_ok=True)
        record.values["parts"] = [*parts, new_part(manifest, step, changes, launch())]
        if CONFIG in record.values["files"] or not (self.path / CONFIG).exists():
            record.values["files"] = sorted({*record.values["files"], CONFIG})
            write_manifest(self.path, record.values)
            write_text(self.path / CONFIG, config)
        else:
            logger.warning("%s is not of this run, so it is kept, and the configuration is not written", CONFIG)
            write_manifest(self.path, record.values)
        return record


@dataclass
class RunRecord:
    """The manifest of a run that goes on. As a context, it records how the run ends.

    Attributes:
        directory: the run's directory.
        values: the manifest.
        processes: those of the run.
        steps: returns the number of the last step, once the training can begin.
    """

    directory: Path
    values: dict[str, Any]
    processes: Processes
    steps: Callable[[], int] | None = None

    def __enter__(self) -> RunRecord:
        self.processes.record = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises:
        TrainingError: if another process failed or hangs, or the disk is full, in place of this process's error.
        """
        self.processes.record = None
        if error is None:
            return
        if isinstance(error, Interrupted):
            error.directory = self.directory
        other = None if (first := self.processes.explained(error)) is error else first
        if (full := full_disk(error, self.directory)) is not None:
            other = TrainingError(full)
        named = isinstance(error, SftkitError | Interrupted)
        reason = str(error) if named else f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        stopped = stopped or (isinstance(other, OtherProcessError) and other.exit_code > OtherProcessError.exit_code)
        try:
            self.end(INTERRUPTED if stopped else FAILED, error=reason if other is None else str(other))
        except OSError as failed:  # such as a full disk, which may be what ended the run
            logger.warning("the end of the run cannot be recorded in %s: %s", self.directory / MANIFEST, failed)
        if other is not None:
            raise other from error

    def writing(self) -> AbstractContextManager[Any]:
        """Inside, what is written into the directory is recorded as the run's."""
        return _Recorded(self) if is_main_process() else nullcontext()

    def update(self, **values: Any) -> None:
        """Record values of the manifest while the run goes on."""
        if is_main_process():
            self.values |= values
            write_manifest(self.directory, self.values)

    def failed(self, reason: str) -> None:
        """Record that the run has failed."""
        self.end(FAILED, error=reason)

    def end(self, status: str, **values: Any) -> None:
        """Record the end of this part of the run.

        Args:
            status: ``done``, ``interrupted`` or ``failed``.
            values: further values of the manifest, such as its metrics.
        """
        if not is_main_process():
            return
        *before, last = self.values["parts"]
        last = {**last, "ended": now(), "status": status, "to_step": self.steps() if self.steps else None}
        self.values |= {**values, "status": status, "parts": [*before, last]}
        write_manifest(self.directory, self.values)


@dataclass
class _Recorded(AbstractContextManager[None]):
    record: RunRecord
    before: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __enter__(self) -> None:
        self.before = snapshot(self.record.directory)

    def __exit__(self, *error: object) -> None:
        """Also if what writes has failed: its files are the run's too."""
        after = snapshot(self.record.directory)
        written = {name for name, known in after.items() if self.before.get(name) != known} - {MANIFEST, LOCK}
        self.record.values["files"] = sorted({*self.record.values["files"], *written})
        write_manifest(self.record.directory, self.record.values)
