"""Notes of the training, from which it is seen that a process goes on, and what it did last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from sftkit.run.processes import Processes


class Marks(TrainerCallback):
    """Notes each step, batch of an evaluation, and save.

    Args:
        processes: those of the run.
    """

    def __init__(self, processes: Processes) -> None:
        self._mark = processes.mark

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step begins."""
        self._mark(f"in step {state.global_step + 1}")

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A batch of a step is done."""
        self._mark(f"in step {state.global_step + 1}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step is done."""
        self._mark(f"after step {state.global_step}")

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A batch of an evaluation is done."""
        self._mark(f"in the evaluation after step {state.global_step}")

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An evaluation is done."""
        self._mark(f"after the evaluation of step {state.global_step}")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A save is done."""
        self._mark(f"after the save of step {state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The training is done."""
        self._mark("after the training")
