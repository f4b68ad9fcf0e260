"""The peak memory of a run, estimated on its model without weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from sftkit.errors import SftkitError
from sftkit.memory.unloaded import UnknownMemoryError, unloaded_model

if TYPE_CHECKING:
    from sftkit.memory import MemoryEstimate
    from sftkit.run.stages import PreparedRun
    from sftkit.training.loss import HeadLoss

#: Bytes that a process needs in addition when it trains: modules that the Trainer imports, and threads.
TO_COME = 40_000_000


def estimate_run(prepared: PreparedRun) -> MemoryEstimate:
    """Estimate the peak memory of a run.

    Raises:
        UnknownMemoryError: if it is not known before the model is loaded.
        SftkitError: if a plugin finds that the run is wrong, or the collator fails.
    """
    from sftkit.memory import estimate_memory
    from sftkit.memory.batch import largest_batch

    for name in prepared.plugins.fillers("make_engine"):
        raise UnknownMemoryError(f"plugin {name} divides weights or gradients among processes")
    batch = largest_batch(prepared)
    try:
        model, quantized = unloaded_model(prepared)
        sizes = None if quantized is None else quantized.sizes(model)
        with as_trained(model, prepared, batch):
            loss, plugins = _loss_of(prepared, model), prepared.plugins
            return estimate_memory(
                model, batch, prepared.config, loss=loss, plugins=plugins, quantized=sizes, more=TO_COME
            )
    except SftkitError:
        raise
    except Exception as error:  # a model's forward, or a plugin, may raise anything on tensors without data
        first = next(iter(str(error).splitlines()), "")
        raise UnknownMemoryError(f"the model cannot run without data ({type(error).__name__}: {first})") from error


def _loss_of(prepared: PreparedRun, model: Any) -> HeadLoss | None:
    """The loss of the run if it runs further models, whose memory is counted; None for any other."""
    made = prepared.plugins.hook.make_loss(model=model, config=prepared.config)
    return made if made is not None and made.models else None


@contextmanager
def as_trained(model: Any, prepared: PreparedRun, batch: Any) -> Iterator[None]:
    """The model with everything that changes its memory while it trains."""
    from sftkit.memory.checkpointing import as_configured

    with ExitStack() as stack:
        stack.enter_context(as_configured(model, prepared.config))
        known = {"model": model, "config": prepared.config, "batch": batch, "plugins": prepared.plugins}
        context = prepared.plugins.hook.reduce_activations(**known)
        if context is not None:
            stack.enter_context(context)
        yield
