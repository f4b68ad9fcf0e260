"""The runs of experiment trackers: which one an integration of transformers writes to, and how it ends."""

from __future__ import annotations

import functools
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrackerRun:
    """How one tracker is asked for its run.

    Attributes:
        active: whether a run has begun already, such as one of the user's own; it is used, and not ended.
        begin: begins a run, or continues the one with this id, empty for a new one, after this number of steps.
        current: the id of the run.
        end: ends the run, as failed or not.
        fixed: whether the configuration of a run cannot change, so that it is only sent once.
        files: whether the run is files in a directory, whose path is the id, relative to the run directory.
    """

    active: Callable[[Any], bool]
    begin: Callable[[Any, Any, str, int], None]
    current: Callable[[Any], str]
    end: Callable[[Any, bool], None]
    fixed: bool = False
    files: bool = False


def _begin_wandb(integration: Any, arguments: Any, run: str, step: int) -> None:
    known = {"id": run, "resume": "allow"} if run else {}
    project = os.environ.get("WANDB_PROJECT", "huggingface")
    integration._wandb.init(project=project, name=arguments.run_name, **known)


def _begin_mlflow(integration: Any, arguments: Any, run: str, step: int) -> None:
    if run:
        integration._ml_flow.start_run(run_id=run)
        return
    if name := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
        integration._ml_flow.set_experiment(name)
    integration._ml_flow.start_run(run_name=arguments.run_name)


def _begin_trackio(integration: Any, arguments: Any, run: str, step: int) -> None:
    """Choose the name, by which the integration begins or continues a run: a new one has a name of its own."""
    arguments.run_name = run or f"{arguments.run_name}-{secrets.token_hex(3)}"
    integration.sftkit_run = arguments.run_name


def _begin_tensorboard(integration: Any, arguments: Any, run: str, step: int) -> None:
    """Choose the directory of the events. The writer is made when the training begins, and hides what comes again."""
    from transformers.integrations.integration_utils import default_logdir

    directory = Path(arguments.output_dir)
    if run:
        integration.logging_dir = str(directory / run)
        integration._SummaryWriter = functools.partial(integration._SummaryWriter, purge_step=step + 1)
    elif integration.logging_dir is None:
        integration.logging_dir = str(directory / default_logdir())
    else:
        Path(integration.logging_dir).mkdir(parents=True, exist_ok=True)
    path = Path(integration.logging_dir).absolute()
    inside = path.is_relative_to(directory.absolute())
    integration.sftkit_run = str(path.relative_to(directory.absolute()) if inside else path)


#: The trackers whose runs sftkit begins, continues and ends; others do so by themselves when the training begins.
TRACKER_RUNS = {
    "wandb": TrackerRun(
        active=lambda integration: integration._wandb.run is not None,
        begin=_begin_wandb,
        current=lambda integration: str(integration._wandb.run.id),
        end=lambda integration, failed: integration._wandb.finish(exit_code=int(failed)),
    ),
    "mlflow": TrackerRun(
        active=lambda integration: integration._ml_flow.active_run() is not None,
        begin=_begin_mlflow,
        current=lambda integration: str(integration._ml_flow.active_run().info.run_id),
        end=lambda integration, failed: integration._ml_flow.end_run("FAILED" if failed else "FINISHED"),
        fixed=True,
    ),
    "trackio": TrackerRun(
        active=lambda integration: False,
        begin=_begin_trackio,
        current=lambda integration: str(integration.sftkit_run),
        end=lambda integration, failed: integration._trackio.finish() if integration._initialized else None,
    ),
    "tensorboard": TrackerRun(
        active=lambda integration: False,
        begin=_begin_tensorboard,
        current=lambda integration: str(integration.sftkit_run),
        end=lambda integration, failed: integration.on_train_end(None, None, None),
        files=True,
    ),
}
