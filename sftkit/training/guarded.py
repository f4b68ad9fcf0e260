"""`transformers.Trainer` that saves nothing that is not finite, and that can be stopped."""

from __future__ import annotations

from typing import Any

from sftkit.training.attributes import replaced
from sftkit.training.best import BestModel
from sftkit.training.finite import FiniteSteps, require_finite
from sftkit.training.optimizing_trainer import OptimizingTrainer
from sftkit.training.stopping import EvaluationStopped, StopCallback


class GuardedTrainer(OptimizingTrainer):
    """Lets `FiniteSteps` look at each step, and `StopCallback` leave evaluations and keep its checkpoint.

    Args:
        finite: notices steps that are not finite; with None they are not noticed, and anything is saved.
        stopping: ends the training on a signal or at a deadline; with None, nothing does.
        best: follows the metric by which models are compared; with None, nothing does.
        arguments: of `OptimizingTrainer`.
    """

    def __init__(
        self,
        *,
        finite: FiniteSteps | None = None,
        stopping: StopCallback | None = None,
        best: BestModel | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.finite, self.stopping, self.best = finite, stopping, best
        if best is not None:
            self.add_callback(best)
        if stopping is not None:
            stopping.trainer = self
            self.add_callback(stopping)

    def get_batch_samples(self, *arguments: Any) -> Any:
        """As in the Trainer, at the beginning of each step."""
        if self.finite is not None:
            self.finite.begin(self)
        return super().get_batch_samples(*arguments)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if self.finite is not None:
            self.finite.end(self, model, norm)
        return norm

    def _maybe_log_save_evaluate(self, *arguments: Any, **options: Any) -> None:
        waits = self.control.should_log or self.control.should_evaluate or self.control.should_save
        if waits and self.finite is not None:
            self.finite.check(self)
        super()._maybe_log_save_evaluate(*arguments, **options)

    def _finalize_training(self, *arguments: Any, **options: Any) -> Any:
        if self.finite is not None:
            self.finite.check(self)
        if not self._is_stopped:
            return super()._finalize_training(*arguments, **options)
        # The Trainer would delete the checkpoint from which the run is continued.
        with replaced(self.args, "load_best_model_at_end", False), replaced(self.args, "save_total_limit", None):
            return super()._finalize_training(*arguments, **options)

    @property
    def _is_stopped(self) -> bool:
        return self.stopping is not None and bool(self.stopping.stopped)

    def _evaluate(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super()._evaluate(*arguments, **options)
        except EvaluationStopped:
            return {}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        if self._is_stopped:  # without metrics: whether the step is saved has been decided
            return bool(self.control.should_save)
        if self.best is None or self.args.metric_for_best_model is None:
            return bool(super()._determine_best_metric(metrics, trial))
        self.best.count(self.args, self.state, self.control, metrics)
        before = self.state.best_metric
        better = bool(super()._determine_best_metric(metrics, trial))
        if better:
            self.best.report(self.args, self.state, before)
        return better

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        if self.finite is not None:
            require_finite(self)
        super()._save_checkpoint(*arguments, **options)
