"""`transformers.Trainer` with an optimizer that a plugin may make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import Trainer

from sftkit.training.groups import learning_rates, require_same_groups


class OptimizingTrainer(Trainer):
    """Asks for the optimizer, logs the learning rate of each of its groups, and saves the weights that it averages.

    Args:
        make_optimizer: makes the optimizer for the model; None, or a result of None, means that of ``args.optim``.
        arguments: of `transformers.Trainer`.
    """

    optimizer: Any

    def __init__(self, *, make_optimizer: Callable[[Any], Any] | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._make_optimizer = make_optimizer
        self._rates: dict[str, float] = {}  # of the groups, when the Trainer has last asked for the learning rate

    def create_optimizer(self, model: Any = None) -> Any:
        """As in the Trainer; a state that is loaded must be of such an optimizer."""
        if self.optimizer is not None:
            return super().create_optimizer(model)
        if self._make_optimizer is not None:
            self.optimizer = self._make_optimizer(self.model if model is None else model)
        made = super().create_optimizer(model)
        if hasattr(made, "register_load_state_dict_pre_hook"):
            made.register_load_state_dict_pre_hook(require_same_groups)
        return made

    def use_averaged_weights(self) -> None:
        """Give the model the weights that are evaluated and saved; the next step goes on with those that are trained.

        Some optimizers, such as schedule-free ones, train other weights than their average.
        """
        if callable(getattr(self.optimizer, "eval", None)):
            self.optimizer.eval()

    def _get_learning_rate(self) -> float:
        self._rates = learning_rates(self.optimizer)
        return super()._get_learning_rate()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in the Trainer, with the learning rate of each group, if they differ."""
        if "learning_rate" in logs:
            logs.update(self._rates)
        super().log(logs, start_time)
