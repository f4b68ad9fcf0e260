"""The peak memory of a run, estimated on its model without weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from sftkit.answers import Warnings, keep, parts_of_run, recall
from sftkit.errors import SftkitError
from sftkit.memory.device import DeviceMemory, device_of, host_memory, memory_of
from sftkit.memory.estimate import MemoryEstimate, estimate_memory
from sftkit.memory.unloaded import UnknownMemoryError, unloaded_model
from sftkit.models.adapters import base_of

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.run.stages import PreparedRun
    from sftkit.training.loss import HeadLoss

PEAK = "the peak memory of a run"

#: Bytes that a process needs in addition when it trains: modules that the Trainer imports, and threads.
TO_COME = 40_000_000


def estimate_run(prepared: PreparedRun) -> MemoryEstimate:
    """Estimate the peak memory of a run.

    Raises:
        UnknownMemoryError: if it is not known before the model is loaded.
        SftkitError: if a plugin finds that the run is wrong, or the collator fails.
    """
    for name in prepared.plugins.fillers("make_engine"):
        raise UnknownMemoryError(f"plugin {name} divides weights or gradients among processes")
    parts = _parts(prepared)
    if parts is not None and (kept := recall(PEAK, parts)) is not None:
        return MemoryEstimate(kept["items"], _available(kept["device"], prepared.config))
    with Warnings("sftkit", "transformers") as warned:
        found = _estimated(prepared)
    if parts is not None and not warned.any:
        keep(PEAK, parts, {"items": found.items, "device": "cpu" if found.available.device == "cpu" else ""})
    return found


def _parts(prepared: PreparedRun) -> dict[str, Any] | None:
    """What the estimate depends on; None if it is made each time."""
    data, vocabulary = prepared.data, prepared.vocabulary
    if prepared.model is not None or vocabulary.processor is not None or not prepared.collator.plugin:
        return None
    if "train" not in data.described:  # a stream
        return None
    parts = parts_of_run(prepared.config, prepared.plugins, base_of(prepared.config.model.name)[0])
    if parts is None:
        return None
    tokenizer = prepared.tokenizer
    special = {**tokenizer.special_tokens_map, "pad": tokenizer.pad_token_id, "eos": tokenizer.eos_token_id}
    known = {"rows": data.described, "tokens": len(tokenizer), "new": vocabulary.new_token_ids}
    return {**parts, **known, "special": {name: str(value) for name, value in special.items()}}


def _available(device: str, config: RunConfig) -> DeviceMemory:
    """The memory of the run's device as it is now."""
    return host_memory() if device == "cpu" else memory_of(device_of(config))


def _estimated(prepared: PreparedRun) -> MemoryEstimate:
    from sftkit.memory.batch import largest_batch

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
