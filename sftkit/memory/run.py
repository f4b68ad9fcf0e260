"""The peak memory of a run, on its model without weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from sftkit.errors import SftkitError
from sftkit.memory.unloaded import UnknownMemoryError, unloaded_model

if TYPE_CHECKING:
    from sftkit.memory import MemoryEstimate
    from sftkit.run.stages import PreparedRun


#: What shares weights or gradients out among devices: the estimate is of one that holds them all.
SHARING = ("fsdp", "deepspeed", "parallelism_config")


#: Bytes that a process has more when it trains: what the Trainer imports, and the threads of its operations.
TO_COME = 40_000_000


def estimate_run(prepared: PreparedRun) -> MemoryEstimate:
    """The peak of the run's memory.

    Raises:
        UnknownMemoryError: if it cannot be known before the model is loaded.
    """
    from sftkit.memory import estimate_memory
    from sftkit.memory.batch import largest_batch
    from sftkit.memory.quantized import UnknownQuantizationError, quantized_bytes

    for key in SHARING:
        if prepared.config.train.get(key):
            raise UnknownMemoryError(f"what one process holds under train.{key}")
    batch = largest_batch(prepared.data.train, prepared.collator, prepared.config)
    try:
        model, quantization = unloaded_model(prepared)
        sizes = None if quantization is None else quantized_bytes(model, quantization)
        with as_trained(model, prepared, batch):
            return estimate_memory(model, batch, prepared.config, quantized=sizes, more=TO_COME)
    except (SftkitError, UnknownMemoryError):
        raise
    except UnknownQuantizationError as error:
        raise UnknownMemoryError(f"what weights quantized by {error} take is not known here") from error
    except Exception as error:  # a model's forward, or a plugin, may raise anything on tensors without data
        first = next(iter(str(error).splitlines()), "")
        raise UnknownMemoryError(f"it cannot be run without data ({type(error).__name__}: {first})") from error


@contextmanager
def as_trained(model: Any, prepared: PreparedRun, batch: Any) -> Iterator[None]:
    """The model as it is while training, as far as its memory goes."""
    from sftkit.memory.checkpointing import as_configured

    with ExitStack() as stack:
        stack.enter_context(as_configured(model, prepared.config))
        context = prepared.plugins.hook.reduce_activations(model=model, config=prepared.config, batch=batch)
        if context is not None:
            stack.enter_context(context)
        yield
