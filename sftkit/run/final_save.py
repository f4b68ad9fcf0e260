"""The model is saved as soon as it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from sftkit.errors import OtherProcessError, TrainingError
from sftkit.training.finite import require_finite

if TYPE_CHECKING:
    from sftkit.run.directory import RunRecord


class SavesFirst(TrainerCallback):
    """Saves the model with its tokenizer when training ends, before the other callbacks are called.

    Args:
        trainer: the trainer of the run; this has to be the first of its callbacks.
        record: the run's manifest, which lists the files.
    """

    def __init__(self, trainer: Any, record: RunRecord) -> None:
        self._trainer, self._record, self._saved = trainer, record, False

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Saves the model, unless the training was stopped; in every process, since sharded weights are gathered."""
        if not self._trainer.stopping.stopped:
            self._save()

    @contextmanager
    def even_after_errors(self) -> Iterator[None]:
        """Saves the model also if something fails between its last step and the end of the training."""
        try:
            yield
        except Exception as error:
            state = self._trainer.state
            trained = 0 < state.max_steps <= state.global_step
            gathers = self._trainer.sharded  # others may have failed too
            own = isinstance(error, TrainingError) and not isinstance(error, OtherProcessError)
            if trained and not self._saved and not gathers and not own:
                self._save(alone=True)
            raise

    def _save(self, alone: bool = False) -> None:
        require_finite(self._trainer, alone)
        with self._record.writing():
            self._trainer.save_model(str(self._record.directory))
        self._saved = True
        if not alone:
            self._record.processes.meet("the saved model")  # which takes longer than a collective may
