"""Checks whether a run fits into the memory of its device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sftkit.api import SftkitError, Status, UnknownMemoryError, Verdict, estimate_run

if TYPE_CHECKING:
    from sftkit.api import PreparedRun

FIX = (
    "lower train.per_device_train_batch_size (and raise train.gradient_accumulation_steps), or use -p activations, "
    "-p peft, train.optim=adamw_bnb_8bit"
)


def memory_verdicts(run: PreparedRun) -> Iterator[Verdict]:
    """A verdict on the estimated peak, with its parts as details."""
    try:
        estimate = estimate_run(run)
    except UnknownMemoryError as error:
        yield Verdict("memory", "ok", f"the memory that the run needs is not known before the model is loaded: {error}")
    except SftkitError as error:
        for problem in error.problems:
            yield Verdict("memory", "wrong", problem.what, problem.fix, problem.where)
    else:
        status: Status = "wrong" if estimate.fits is False else "warn" if estimate.near else "ok"
        yield Verdict("memory", status, estimate.describe(), "" if status == "ok" else FIX, details=estimate.as_dict())
