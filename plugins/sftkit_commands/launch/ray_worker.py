"""What a Ray worker does: ``sftkit run``, whose lines, checkpoints and errors go to the process that launched it."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
from transformers import TrainerCallback

from sftkit.api import Interrupted, OtherProcessError, SftkitError, TrainingError, interrupt_runs, rank, run_command
from sftkit_commands.launch.ray_channel import RunEnded

POINTER = "checkpoint.json"
STOP_SECONDS = 1.0  # between two looks whether the run is to stop
VERDICT_SECONDS = 15.0  # in which the worker that failed first says why, if it was not killed


class Reports(TrainerCallback):
    """Reports each checkpoint to Ray when it is saved, in all workers, and to the channel how far the run has come.

    sftkit has written the checkpoint to storage that all nodes share, and continues from there. Ray is given a small
    file that names it, so nothing is copied again.

    Args:
        channel: the actor.
        overwrites: whether the run replaces another, which is there until the steps begin.
    """

    def __init__(self, channel: Any, overwrites: bool) -> None:
        self._channel, self._overwrites = channel, overwrites
        self._metrics: dict[str, float] = {}

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Everything is loaded, so the run directory was checked."""
        if state.is_world_process_zero and not self._overwrites:
            ray.get(self._channel.loaded.remote())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The run can be interrupted from now on."""
        if state.is_world_process_zero:
            ray.get(self._channel.trains.remote())

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Keeps the values for the next report: Ray takes one report in two seconds, and others would wait."""
        self._metrics |= {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Reports the checkpoint of this step."""
        report({**self._metrics, "step": state.global_step}, Path(args.output_dir, f"checkpoint-{state.global_step}"))


def report(metrics: Mapping[str, Any], directory: Path) -> None:
    """Report metrics and a checkpoint to Ray; called by all workers.

    Args:
        metrics: numbers by name.
        directory: where the checkpoint or the model is.
    """
    import json
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        pointer = None
        if rank() == 0:
            Path(folder, POINTER).write_text(json.dumps({"path": str(directory)}), encoding="utf-8")
            pointer = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(dict(metrics), checkpoint=pointer)


def work(config: Mapping[str, Any]) -> None:
    """What every worker does.

    Args:
        config: of the training function: ``first``, the arguments of ``sftkit run``; ``again``, those that continue the
            run; ``overwrites``, whether it replaces another; ``output``, its directory; ``cwd``, the directory to run
            in, unless Ray has uploaded it; and ``channel``, the actor.

    Raises:
        RunEnded: if the run cannot or must not go on.
        SftkitError: if another start may help, such as after another worker has died.
    """
    channel = config["channel"]
    begun = _from_first(ray.get(channel.start.remote()) if rank() == 0 else False)
    try:
        _enter(config["cwd"])
        callback = Reports(channel, config["overwrites"])
        with _printing_to(channel), _stopping(channel):
            run_command(["run", *config["again" if begun else "first"]], callbacks=[callback])
        _report_end(Path(config["output"]))
    except (SftkitError, Interrupted) as error:
        others = _of_others(error)
        ray.get(channel.fail.remote(rank(), not others, error))
        if _is_final(channel, others, isinstance(error, Interrupted)):
            raise RunEnded(str(error)) from error
        raise
    except Exception as error:
        ray.get(channel.fail.remote(rank(), False, "".join(traceback.format_exception(error))))
        raise


def _report_end(output: Path) -> None:
    """Report the metrics of the whole run, and where its model is."""
    from sftkit.api import manifest_of

    report((manifest_of(output) or {}).get("metrics", {}), output)


def _enter(directory: str) -> None:
    """Change to the directory of the launch, where relative paths begin.

    Raises:
        ConfigError: if this node has none of that name.
    """
    from sftkit.api import ConfigError, Problem

    if not directory:
        return
    try:
        os.chdir(directory)
    except OSError as error:
        what = f"the node {ray.util.get_node_ip_address()} has no such directory: {error.strerror}"
        fix = "launch from a directory on storage that all nodes share, or with --on ray:address=http://HEAD:8265"
        raise ConfigError(Problem(what, directory, fix)) from error


def _of_others(error: BaseException) -> bool:
    """Whether the run failed here because another worker did, or cannot be reached."""
    if not isinstance(error, TrainingError):
        return False
    cause = error.__cause__
    return isinstance(error, OtherProcessError) or not (cause is None or isinstance(cause, SftkitError | OSError))


def _is_final(channel: Any, others: bool, agreed: bool) -> bool:
    """Whether another start would not help, as the worker that failed first says.

    Ray ends all workers as soon as one fails, so the others wait until the first worker, which writes files, is done.

    Args:
        channel: the actor, which has this worker's error.
        others: whether another worker has failed first.
        agreed: whether all workers end now, so that the first one will be done.
    """
    until = time.monotonic() + VERDICT_SECONDS
    while True:
        errors = ray.get(channel.errors.remote())
        final = any(each for _, each, _ in errors)
        done = final if others else rank() == 0 or any(number == 0 for number, _, _ in errors)
        if done or (time.monotonic() > until and not agreed):
            return final
        time.sleep(0.2)


def _from_first(value: Any) -> Any:
    """The value of the first worker."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, device=None)
    return values[0]


@contextmanager
def _stopping(channel: Any) -> Iterator[None]:
    """Context in which the first worker looks whether the run is to stop; all stop at the same step."""
    if rank() != 0:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(STOP_SECONDS):
            if (number := ray.get(channel.signal.remote())) is not None:
                interrupt_runs(number)
                return

    watcher = threading.Thread(target=watch, name="sftkit-stop", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


@contextmanager
def _printing_to(channel: Any) -> Iterator[None]:
    """Context in which what the first worker prints goes to the launching process; that of others is in Ray's logs."""
    if rank() != 0:
        yield
        return
    before = sys.stdout, sys.stderr
    logging.getLogger("ray").setLevel(logging.ERROR)
    sys.stdout, sys.stderr = _Lines(channel, "stdout"), _Lines(channel, "stderr")
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


class _Lines(io.TextIOBase):
    """A text stream that sends whole lines to the channel."""

    encoding = "utf-8"

    def __init__(self, channel: Any, name: str) -> None:
        self._channel, self._name, self._begun = channel, name, ""
        self._lock = threading.Lock()

    def writable(self) -> bool:
        """It can be written to."""
        return True

    def write(self, text: str) -> int:
        """Send the lines that the text ends."""
        with self._lock:
            whole, end, rest = (self._begun + text).rpartition("\n")
            self._begun = rest
        if end:
            self._channel.write.remote(self._name, whole + end)
        return len(text)

    def flush(self) -> None:
        """Send a line that has not ended."""
        with self._lock:
            rest, self._begun = self._begun, ""
        if rest:
            self._channel.write.remote(self._name, rest)
