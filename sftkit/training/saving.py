"""Checkpoints of the trainer: complete or absent, timed, and written in the background if asked for."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import recursively_apply
from transformers import modeling_utils

from sftkit import DISTRIBUTION, checkpoints
from sftkit.checkpoints.background import Background
from sftkit.checkpoints.manifest import STATE
from sftkit.checkpoints.publish import PARTIAL, discard, publish, replace_files, rotate, tidy
from sftkit.checkpoints.space import FREE_SPACE, failed_write, free_bytes, size_of
from sftkit.errors import Problem, TrainingError
from sftkit.ranks import local_world_size
from sftkit.training.attributes import replaced
from sftkit.units import size_text

logger = logging.getLogger("sftkit")

LIBRARIES = (DISTRIBUTION, "torch", "transformers", "accelerate", "safetensors")
SPARE = 1_000_000  # bytes that must be free besides a checkpoint
WITHOUT_OPTIMIZER = "train.save_only_model is set: this run cannot be resumed from its checkpoints"


class Saver:
    """Saves the checkpoints of a trainer.

    The Trainer writes a checkpoint into a directory beside. When all processes have written their parts, the main
    process syncs the files, adds their manifest and renames the directory.

    Args:
        trainer: the trainer.

    Attributes:
        background: whether large files are written while the training goes on.
        needed: estimated bytes of a checkpoint; after the first one, its bytes.
        last_seconds: how long the last save took, up to its end; None before the first.
        meet: called where all processes wait for those that write, with the name of the place.
        shared: whether all machines see what the main process writes.
        totals: of a training that has ended: its number of saves, the seconds that it has waited for them, and their
            share of its time; empty without saves.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.background, self.needed, self.shared = False, 0, True
        self.meet: Callable[[str], None] = lambda name: None
        self.last_seconds: float | None = None
        self.totals: dict[str, float] = {}
        self._blocked, self._saves, self._began = 0.0, 0, 0.0
        self._thread = Background()

    def begin(self) -> None:
        """Start the clock of a training, and remove what an interrupted one has left."""
        self.totals, self._blocked, self._saves, self._began = {}, 0.0, 0, time.perf_counter()
        args = self._trainer.args
        if args.should_save:
            tidy(Path(args.output_dir))
            if args.save_only_model and args.save_strategy != "no":
                logger.warning(WITHOUT_OPTIMIZER)

    def save(self, write: Callable[[], Any], trial: Any) -> None:
        """Save a checkpoint of the current step.

        Args:
            write: the Trainer's own `_save_checkpoint`.
            trial: of a hyperparameter search.

        Raises:
            TrainingError: if the checkpoint, or the previous one, cannot be written, as on a full disk.
        """
        began, trainer = time.perf_counter(), self._trainer
        self.wait()
        run = Path(trainer._get_output_dir(trial))
        final = run / f"checkpoint-{trainer.state.global_step}"
        partial, later = run / PARTIAL / final.name, _Writes()
        with self._removing(partial):
            self._check_space(final)
            self._write(write, partial, later)
            if trainer.state.best_model_checkpoint == str(partial):
                trainer.state.best_model_checkpoint = str(final)
                if trainer.args.should_save:
                    trainer.state.save_to_json(str(partial / STATE))
            self.meet("a save")
            trainer.accelerator.wait_for_everyone()
            if trainer.args.should_save:
                finish = functools.partial(self._finish, partial, final, later, self._details())
                self._thread.start(finish) if self.background else finish()
            self.meet("the end of a save")
        blocked = time.perf_counter() - began
        self._blocked, self._saves = self._blocked + blocked, self._saves + 1
        if not self.background:
            self.last_seconds = blocked
        trainer.log({"save_seconds": round(blocked, 3)})
        if trainer.args.push_to_hub:
            trainer._push_from_checkpoint(str(final))

    def check(self) -> None:
        """Raise the error of a save in the background that has ended.

        Raises:
            TrainingError: as for `save`.
        """
        if not self._thread.busy:
            self.wait()

    def wait(self) -> None:
        """Wait for the save in the background, if there is one.

        Raises:
            TrainingError: as for `save`.
        """
        self._thread.wait()
        if self._thread.seconds is not None:
            self.last_seconds, self._thread.seconds = self._thread.seconds, None
            self._trainer.log({"save_background_seconds": round(self.last_seconds, 3)})

    def end(self) -> None:
        """Wait for the last save, in all processes, and log the `totals`.

        Raises:
            TrainingError: as for `save`.
        """
        began = time.perf_counter()
        self.wait()
        self.meet("the last save")
        self._trainer.accelerator.wait_for_everyone()
        now = time.perf_counter()
        if self._saves:
            waited = self._blocked + now - began
            share = round(waited / (now - self._began), 4)
            self.totals = {"saves": self._saves, "total_save_seconds": round(waited, 3), "save_share": share}
            self._trainer.log(dict(self.totals))

    def abandon(self) -> None:
        """Wait after an error; what the save in the background raises is logged."""
        try:
            self._thread.wait()
        except Exception as error:
            logger.error("%s", error)

    def _write(self, write: Callable[[], Any], partial: Path, later: _Writes) -> None:
        with ExitStack() as stack:
            stack.enter_context(replaced(self._trainer, "_get_output_dir", lambda trial=None: str(partial.parent)))
            stack.enter_context(replaced(self._trainer, "_push_from_checkpoint", lambda folder: None))
            if self.background and self._trainer.args.should_save:
                stack.enter_context(later.taken())
            write()

    def _details(self) -> dict[str, Any]:
        trainer, args = self._trainer, self._trainer.args
        batches = trainer.state.global_step * args.gradient_accumulation_steps
        return {
            "step": trainer.state.global_step,
            "data": {"epoch": trainer.state.epoch, "batches": batches},
            "position": trainer.position(),
            "world_size": args.world_size,
            "ranks": self._ranks(),
            "resumable": not args.save_only_model,
            "versions": {name: metadata.version(name) for name in LIBRARIES},
        }

    @property
    def elsewhere(self) -> bool:
        """Whether checkpoints are written on another machine, whose disk this process does not see."""
        args = self._trainer.args
        return not self.shared and not args.save_on_each_node and args.process_index >= local_world_size()

    def _ranks(self) -> list[int]:
        """The processes that save on this disk."""
        args = self._trainer.args
        if self.shared and not args.save_on_each_node:
            return list(range(args.world_size))
        first = args.process_index - args.local_process_index
        return list(range(first, first + local_world_size()))

    def _finish(self, partial: Path, final: Path, later: _Writes, details: dict[str, Any]) -> None:
        """Write what was put off, and make the checkpoint visible. May run in a thread."""
        best = self._trainer.state.best_model_checkpoint
        with self._removing(partial):
            later.write()
            checkpoints.write(partial, details)
            publish(partial, final)
            self.needed = size_of(final)
        try:
            rotate(final.parent, self._trainer.args.save_total_limit, final, Path(best) if best else None)
        except OSError as error:
            logger.warning("an older checkpoint cannot be removed: %s", error)

    def _check_space(self, final: Path) -> None:
        free = free_bytes(final)
        if self._trainer.args.should_save and free < self.needed + SPARE:
            what = f"the disk is nearly full: the checkpoint needs {size_text(self.needed)}, {size_text(free)} are free"
            raise TrainingError(Problem(what, str(final), FREE_SPACE))

    @contextmanager
    def _removing(self, partial: Path) -> Iterator[None]:
        """Removes an incomplete checkpoint after an error inside, and raises it as the user's if it is of the disk."""
        try:
            yield
        except BaseException as error:
            free = free_bytes(partial)
            if self._trainer.args.should_save:
                discard(partial)
            if (what := failed_write(error)) is None:
                raise
            what = f"the checkpoint cannot be written: {what} ({size_text(free)} are free)"
            fix = f"{FREE_SPACE}; the checkpoints before it are intact"
            raise TrainingError(Problem(what, str(partial.parent.with_name(partial.name)), fix)) from error


class _Writes:
    """Files to write later, with copies of their tensors in the memory of the CPU."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], Any]] = []

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Takes what is written inside: weights, and dictionaries that ``torch.save`` writes."""
        with ExitStack() as stack:
            for owner, name in ((modeling_utils, "safe_save_file"), (torch, "save")):
                stack.enter_context(replaced(owner, name, functools.partial(self._take, getattr(owner, name))))
            yield

    def _take(self, function: Callable[..., Any], values: Any, *arguments: Any, **options: Any) -> None:
        if not isinstance(values, dict):
            function(values, *arguments, **options)
            return
        copied = recursively_apply(lambda tensor: tensor.detach().to("cpu", copy=True), values)
        self._calls.append(functools.partial(function, copied, *arguments, **options))

    def write(self) -> None:
        """Write the files, and let go of each copy."""
        while self._calls:
            self._calls.pop(0)()


def save_beside(write: Callable[[str], Any], directory: Path, together: bool, trainer: Any) -> None:
    """Save a model beside its directory, then move its files there, so that files that are mapped are not changed.

    Args:
        write: saves into the directory that it is given.
        directory: where the model is saved.
        together: whether several processes write files.
        trainer: the trainer.

    Raises:
        TrainingError: if no weights were written, or the disk is full.
    """
    partial = directory / PARTIAL / "model"
    try:
        write(str(partial))
        if together:
            trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            _require_weights(partial, directory)
            replace_files(partial, directory)
    except BaseException as error:
        if trainer.args.should_save:
            discard(partial)
        if (what := failed_write(error)) is None:
            raise
        fix = "free some space; the checkpoints are intact"
        raise TrainingError(Problem(f"the model cannot be written: {what}", str(directory), fix)) from error
    if together:
        trainer.accelerator.wait_for_everyone()


def _require_weights(partial: Path, directory: Path) -> None:
    """Raises:
    TrainingError: if no weights are in the directory, as where sharded ones are not gathered.
    """
    if not any(partial.rglob("*.safetensors")):
        fix = "the checkpoints are intact; have sharded weights gathered, as by state_dict_type FULL_STATE_DICT"
        raise TrainingError(Problem("the model was not written: no process has its weights", str(directory), fix))
