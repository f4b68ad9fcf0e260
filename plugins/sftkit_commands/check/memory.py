"""Whether a run fits the memory of its device, on a model without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftkit.api import SftkitError, UnknownMemoryError, estimate_run
from sftkit_commands.check.verdict import Status, Verdict

if TYPE_CHECKING:
    from sftkit.api import MemoryEstimate, PreparedRun

FIX = (
    "lower train.per_device_train_batch_size (and raise train.gradient_accumulation_steps), or use -p activations, "
    "-p peft, train.optim=adamw_bnb_8bit"
)


def memory_verdicts(prepared: PreparedRun) -> tuple[list[Verdict], MemoryEstimate | None]:
    """Whether the run fits, and the estimate, where there is one."""
    try:
        found = estimate_run(prepared)
    except UnknownMemoryError as error:
        return [Verdict("memory", "ok", f"what the run takes cannot be told before the model is loaded: {error}")], None
    except SftkitError as error:
        return [Verdict("memory", "wrong", f"{p.where}: {p.what}", p.fix) for p in error.problems], None
    status: Status = "wrong" if found.fits is False else "warn" if found.near else "ok"
    return [Verdict("memory", status, found.describe(), "" if status == "ok" else FIX)], found
