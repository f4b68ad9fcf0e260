"""Experiment trackers: the integrations of transformers that ``train.report_to`` names, one run of each."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from sftkit.errors import Problem, RunError
from sftkit.redact import without_secrets
from sftkit.training.rehearsal import rehearsed_arguments
from sftkit.training.tracker_runs import TRACKER_RUNS, TrackerRun

if TYPE_CHECKING:
    from sftkit.config import RunConfig

logger = logging.getLogger("sftkit")


class Tracker(TrainerCallback):
    """One integration. An error in it does not end the run: it is logged, and the integration gets nothing more.

    Args:
        name: the name in ``train.report_to``.
        integration: the callback of transformers.
        arguments: what it reports as the configuration of the run.
    """

    def __init__(self, name: str, integration: Any, arguments: _Arguments) -> None:
        self.name, self.integration, self.arguments = name, integration, arguments
        self.known: TrackerRun | None = TRACKER_RUNS.get(name)
        self._owned = self._failed = self._begun = self._ended = False

    @property
    def run(self) -> str:
        """The id of the tracker's run; empty if it is not known, or the run is the user's own."""
        return self.known.current(self.integration) if self.known and self._owned else ""

    def begin(self, run: str, step: int) -> None:
        """Begin a run before the model is loaded, or continue one.

        Args:
            run: the id of the run to continue; empty for a new one.
            step: the step from which it continues.

        Raises:
            RunError: if the tracker cannot be used.
        """
        if self.known is None:
            return
        try:
            self._owned = not self.known.active(self.integration)
            if self._owned:
                self.known.begin(self.integration, self.arguments, run, step)
            if not self.known.files:  # which are in the run directory, so that they wait until the run is there
                self.arguments.reported = not (run and self.known.fixed)
                state = TrainerState(is_local_process_zero=True, is_world_process_zero=True)
                self.integration.on_train_begin(self.arguments, state, TrainerControl(), model=None)
                self._begun = True
        except Exception as error:
            self.end(failed=True)
            what = f"{self.name} cannot start: {' '.join(str(error).split()) or type(error).__name__}"
            fix = f"correct its settings, or remove {self.name} from train.report_to"
            raise RunError(Problem(what, "train.report_to", fix)) from error

    def report(self, event: str, state: Any, control: Any, **values: Any) -> None:
        """Pass an event on."""
        if self._failed or self._ended or (event == "on_train_begin" and self._begun):
            return
        try:
            getattr(self.integration, event)(self.arguments, state, control, **values)
        except Exception as error:
            self._failed = True
            reason = " ".join(str(error).split()) or type(error).__name__
            logger.warning("%s failed at step %d, and is not used any more: %s", self.name, state.global_step, reason)

    def end(self, failed: bool) -> None:
        """End the run of the tracker; what it raises is logged."""
        if self._ended:
            return
        self._ended = True
        try:
            if self.known is not None and self._owned:
                self.known.end(self.integration, failed)
        except Exception as error:
            logger.warning("%s cannot end its run: %s", self.name, error)


class Trackers:
    """The trackers of a run. As a context, it ends their runs as failed if something is raised in it.

    Args:
        trackers: each with an integration that has not begun.
    """

    def __init__(self, trackers: Iterable[Tracker] = ()) -> None:
        self.callbacks = list(trackers)

    @property
    def runs(self) -> dict[str, str]:
        """The ids of the trackers' runs by name, to continue them."""
        return {tracker.name: tracker.run for tracker in self.callbacks if tracker.run}

    @property
    def writes(self) -> list[str]:
        """The directories in the run directory that trackers write."""
        files = [tracker.run for tracker in self.callbacks if tracker.known and tracker.known.files]
        return [name for name in files if name and not Path(name).is_absolute()]

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for tracker in self.callbacks:
            tracker.end(failed=kind is not None)

    def finish(self, trainer: Any, metrics: Mapping[str, Any]) -> None:
        """Report the final metrics, and that the training has ended.

        Args:
            trainer: the trainer of the run.
            metrics: of the model that is saved.
        """
        final = {re.sub("^eval_", "eval_final_", name): value for name, value in metrics.items()}
        model = trainer.model
        for tracker in self.callbacks:
            tracker.report("on_log", trainer.state, trainer.control, logs=dict(final), model=model)
            tracker.report("on_train_end", trainer.state, trainer.control, model=model)


def begin_trackers(
    config: RunConfig, facts: Mapping[str, Any], has_eval: bool, main: bool, runs: Mapping[str, str], step: int
) -> Trackers:
    """The trackers that ``train.report_to`` names; their runs begin now, with the last checks behind them.

    Args:
        config: the run as resolved.
        facts: what is reported as the configuration besides the training arguments.
        has_eval: whether there is evaluation data.
        main: whether this is the main process, which reports.
        runs: the ids of the trackers' runs that are continued.
        step: the step from which they are continued.

    Raises:
        RunError: if a tracker cannot be used.
    """
    from transformers.integrations import get_reporting_integration_callbacks

    if config.train.get("report_to", "none") in ("none", ["none"], [], None):
        return Trackers()
    arguments = rehearsed_arguments(config, has_eval)
    made = Trackers()
    for name in arguments.report_to:
        if not main and name in TRACKER_RUNS:
            continue
        [integration] = [each() for each in get_reporting_integration_callbacks([name])]
        events = [event for event in vars(TrainerCallback) if event.startswith("on_")]
        filled = {event for event in events if getattr(type(integration), event) is not getattr(TrainerCallback, event)}
        passed_on = {event: _passing_on(event) for event in filled - {"on_train_end"}}
        kind = type(type(integration).__name__, (Tracker,), passed_on)
        tracker = kind(name, integration, _Arguments(arguments, facts))
        made.callbacks.append(tracker)
        try:
            tracker.begin(runs.get(name, ""), step)
        except RunError:
            for other in made.callbacks:
                other.end(failed=True)
            raise
    return made


def _passing_on(event: str) -> Any:
    def passed_on(self: Tracker, args: Any, state: Any, control: Any, **values: Any) -> None:
        self.report(event, state, control, **values)

    return passed_on


class _Arguments:
    """Training arguments for an integration, which reports them as the configuration of the run, without secrets.

    Args:
        arguments: `transformers.TrainingArguments`.
        facts: what is reported besides.
    """

    def __init__(self, arguments: Any, facts: Mapping[str, Any]) -> None:
        self._arguments, self._facts = arguments, facts
        self.run_name = arguments.run_name or Path(arguments.output_dir).name
        self.reported = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._arguments, name)

    def to_dict(self) -> dict[str, Any]:
        """The configuration: fields of the training arguments, then facts with dotted names."""
        if not self.reported:
            return {}
        values = self._arguments.to_dict() | {"run_name": self.run_name} | flattened(self._facts)
        shown: dict[str, Any] = without_secrets(values)
        return shown

    def to_json_string(self) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=2, default=str)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names of characters that every tracker takes."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + re.sub(r"[^\w\-./ ]", "_", str(key))
        found |= flattened(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found
