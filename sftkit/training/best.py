"""The best model of a run: says when there is a better one, and stops the run if none comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback

from sftkit import console

#: Where checkpoints keep the state, among that of callbacks.
KEY = "sftkit.best"


class BestModel(TrainerCallback):
    """Follows the metric by which the models of a run are compared.

    The trainer calls `count` and `report` after each evaluation, with the metrics of all evaluation sets together.

    Args:
        say: shows a line, and writes it to the log with its step; called in every process.
        patience: number of evaluations without a better value after which the run stops; None if it does not.
        min_delta: by how much a value has to be better.
        last: whether the model after the last step is evaluated too, so that it can be the best.

    Attributes:
        stopped: why the run was stopped early; empty if it was not.
    """

    def __init__(
        self, say: Callable[[str, int], None], patience: int | None = None, min_delta: float = 0.0, last: bool = False
    ) -> None:
        self._say, self._patience, self._last = say, patience, last
        self._counter = EarlyStoppingCallback(patience or 1, min_delta)
        self.stopped = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Continues to count where a resumed run was; begins again if it compares by another metric."""
        saved = state.stateful_callbacks.get(KEY, {}).get("attributes")
        if saved is not None and saved["metric"] != metric_name(args):
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        elif saved is not None:
            self._counter.early_stopping_patience_counter = saved["without_improvement"]
            self._stop_if_due(args, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluates the last model."""
        if self._last and state.global_step >= state.max_steps:
            control.should_evaluate = True

    def count(self, args: Any, state: Any, control: Any, metrics: Mapping[str, float]) -> None:
        """Count an evaluation, before the best value so far is replaced; asks to stop if it is one too many."""
        if (value := metrics.get(metric_name(args))) is None:
            return
        self._counter.check_metric_value(args, state, control, value)
        counted = {"without_improvement": self._counter.early_stopping_patience_counter, "metric": metric_name(args)}
        state.stateful_callbacks[KEY] = {"args": {}, "attributes": counted}
        if state.global_step < state.max_steps:
            self._stop_if_due(args, control)

    def report(self, args: Any, state: Any, before: float | None) -> None:
        """Say that the model is the best so far.

        Args:
            args: the training arguments.
            state: the trainer's, with the new value.
            before: the best value before; None if there was none.
        """
        was = "" if before is None else f" (was {before:.4f})"
        step, value = state.global_step, f"{_shown(args)} {state.best_metric:.4f}"
        self._say(f"step {step}: best so far, {value}{was}", step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Says why the run was stopped, and which model is saved, which has been done before."""
        if not args.load_best_model_at_end or state.best_metric is None:  # such as after an interruption
            return
        kept = f"the model of step {saved_step(args, state)} is saved"
        if self.stopped:
            self._say(f"stopped at step {state.global_step}: {self.stopped}; {kept}", state.global_step)
        else:
            self._say(f"{kept}, the best with {_shown(args)} {state.best_metric:.4f}", state.global_step)

    def _stop_if_due(self, args: Any, control: Any) -> None:
        if self._patience is None or self._counter.early_stopping_patience_counter < self._patience:
            return
        least = self._counter.early_stopping_threshold
        better = f"{_shown(args)} better by more than {least:g}" if least else f"better {_shown(args)}"
        times = "in the last evaluation" if self._patience == 1 else f"for {self._patience} evaluations"
        self.stopped = f"no {better} {times}"
        control.should_training_stop = True


def metric_name(args: Any) -> str:
    """The metric by which models are compared, as it is logged."""
    return f"eval_{args.metric_for_best_model.removeprefix('eval_')}"


def _shown(args: Any) -> str:
    return console.metric_name(metric_name(args))


def saved_step(args: Any, state: Any) -> int:
    """The step of the model that is saved when a training ends: of the best one if it is loaded, else the last."""
    best = state.best_model_checkpoint if args.load_best_model_at_end else None
    return int(best.rpartition("-")[2]) if best and Path(best).is_dir() else int(state.global_step)
