"""Ends the training at the end of a step, with a checkpoint, when a signal or the deadline asks for it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback

from sftkit.errors import Interrupted
from sftkit.training.agreement import Agreement

logger = logging.getLogger("sftkit")

#: Bytes that a save writes in a second, if there was none yet to measure; that of a slow network disk.
BYTES_PER_SECOND = 100e6
_NOTHING, _SAVE, _DEADLINE, _SIGNAL = 0, 1, 2, 3  # a signal is _SIGNAL plus its number


class Requests(Protocol):
    """What may ask the training to stop or to save.

    Attributes:
        deferring: whether signals wait for the end of the step.
        signal: the signal that asks the run to stop; None if there is none.
        save: whether a signal asks for a checkpoint.
    """

    deferring: bool
    signal: int | None
    save: bool

    def overdue(self, save_seconds: float) -> bool:
        """Whether a save that takes so long would end after the deadline."""

    def time_to_save(self, save_seconds: float) -> bool:
        """Whether a save that takes so long ends within the grace period."""


class EvaluationStopped(Exception):  # noqa: N818 (not an error)
    """An evaluation was left, since the run stops."""


class StopCallback(TrainerCallback):
    """Stops the training, in all processes at the same step, and saves a checkpoint if there is time.

    It is the last callback of a trainer, so that no other evaluates or saves when the training stops.

    Args:
        requests: what asks for it.

    Attributes:
        trainer: the trainer, once it exists.
        stopped: what stopped the training; empty if nothing did.
        exit_code: the exit code of the run, if something did.
        saved: whether the step at which the training stopped was saved.
    """

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._agreement: Agreement | None = None
        self.trainer: Any = None
        self.stopped, self.exit_code, self.saved = "", 0, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """From here on, signals wait for the end of the step."""
        self._requests.deferring = True
        self._agreement = Agreement(args.ddp_timeout)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stops or saves, if it was asked for."""
        assert self._agreement is not None
        asked = self._asked()
        if asked == _SAVE:
            self._agreement.finish()  # in between, the same request was given again
            self._requests.save, control.should_save = False, True
        elif asked:
            self.stop(asked, control)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leaves the evaluation, if the run has to stop."""
        if self._agreement is not None and (asked := self._asked()) > _SAVE:
            self.stop(asked, control)
            raise EvaluationStopped(self.stopped)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ends the exchange with the other processes."""
        if self._agreement is not None:
            self._agreement.finish()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Neither evaluates nor saves again after a stop."""
        if self.stopped:
            control.should_evaluate = control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Notes that the last step is saved."""
        self.saved = bool(self.stopped)

    def _asked(self) -> int:
        assert self._agreement is not None
        asked = _NOTHING
        if self._requests.signal is not None:
            asked = _SIGNAL + self._requests.signal
        elif self._requests.overdue(self._save_seconds()):
            asked = _DEADLINE
        elif self._requests.save:
            asked = _SAVE
        return self._agreement.exchange(asked)

    def stop(self, asked: int, control: Any) -> None:
        """Stop the training, and save the step if there is time."""
        assert self._agreement is not None
        late = self._agreement.largest(int(not self._requests.time_to_save(seconds := self._save_seconds())))
        number = asked - _SIGNAL
        self.stopped = "the deadline run.max_time" if asked == _DEADLINE else signal.Signals(number).name
        self.exit_code = 128 + (signal.SIGTERM if asked == _DEADLINE else number)
        control.should_training_stop = True
        control.should_evaluate, control.should_save = False, not late
        if late and self.trainer.is_world_process_zero():
            logger.warning("no checkpoint is saved: it would take %.0f s, more than run.grace allows", seconds)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Context around a training or an evaluation of the trainer, which may be stopped in it.

        Raises:
            Interrupted: if it was stopped.
        """
        trainer = self.trainer
        try:
            yield
        except EvaluationStopped:  # of an evaluation after the last step
            step = trainer.state.global_step
            self.saved = Path(trainer.args.output_dir, f"checkpoint-{step}").is_dir()
            if step and trainer.control.should_save and not self.saved:
                trainer._save_checkpoint(trainer.model_wrapped, None)
                self.saved = True
        if self.stopped:
            step = trainer.state.global_step
            what = f"checkpoint-{step} is saved" if self.saved else "the step is not saved"
            reason = f"{self.stopped}, after step {step}: {what}" if step else f"{self.stopped}: nothing is saved"
            raise Interrupted(reason, self.exit_code, agreed=True)

    def _save_seconds(self) -> float:
        """The time that a save will take: as long as the last one, else from the size of what it writes."""
        if self.trainer.last_save_seconds is not None:
            return float(self.trainer.last_save_seconds)
        state = getattr(self.trainer.optimizer, "state", None) or {}
        tensors = [*self.trainer.model.parameters()]
        tensors += [value for values in list(state.values()) if isinstance(values, dict) for value in values.values()]
        return sum(getattr(tensor, "nbytes", 0) for tensor in tensors) / BYTES_PER_SECOND
