"""The plugin as a default: it acts where its implementation is proved to work, and otherwise says why it does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from sftkit.api import (
    BatchChoice,
    ConfigError,
    UnsuitedBatchError,
    autocast_type,
    base_model,
    difference_from_alone,
    document_trials,
    train_value,
)
from sftkit_plugins.flash_attn.choose import half_precision, has_prompts, resolve, this_machine
from sftkit_plugins.flash_attn.collate import PaddingFreeCollator
from sftkit_plugins.flash_attn.model import attending

if TYPE_CHECKING:
    from sftkit.api import Collator, RunConfig


@contextmanager
def where_it_works(
    implementation: str, model: Any, config: RunConfig, rows: Any, collator: Collator | None
) -> Iterator[BatchChoice | None]:
    """Batches without padding, if the model is proved to keep their documents apart; otherwise nothing is changed.

    Args:
        implementation: the option of the plugin.
        model: the model to train.
        config: the resolved configuration.
        rows: training rows.
        collator: makes their batches; None if rows and collator are not known.

    Yields:
        The choice, with its reason; None if there is nothing to choose.
    """
    import torch

    if collator is None or rows is None:
        yield None
        return
    with ExitStack() as stack:
        name, reason = _chosen(implementation, model, config, collator)
        if not reason:
            joined, size = PaddingFreeCollator(), int(train_value(config, "per_device_train_batch_size"))
            try:
                stack.enter_context(attending(model, name))
                trials = document_trials(model.config, rows, joined, size, config.data.max_length)
                reason = difference_from_alone(model, trials, autocast_type(config.train)) or ""
            except ConfigError as error:
                reason = error.problems[0].what
            except UnsuitedBatchError as error:
                reason = str(error)
            except torch.OutOfMemoryError:
                reason = "there is too little memory to try the model on batches without padding"
        if reason:
            stack.close()
            yield BatchChoice(f"padded batches: {reason}")
        else:
            yield BatchChoice(f"batches without padding; attention by {name}", joined)


def _chosen(implementation: str, model: Any, config: RunConfig, collator: Collator) -> tuple[str, str]:
    """The implementation, and why batches are padded; empty if they need not be."""
    half, machine = half_precision(config, model), this_machine(config)
    name, problems = resolve(implementation, config, machine, model.config, half, compiled=False)
    attention = getattr(base_model(model).config, "_attn_implementation", None)
    if not getattr(collator, "pads_only", False):
        return name, "the collator is not that of the plugin pad, or rounds the length of batches"
    if machine.device not in ("cpu", "cuda"):
        return name, f"the device {machine.device} was not measured; select flash_attn to use it there"
    if "compile" in config.plugins or config.train.get("torch_compile"):
        return name, "the layers are compiled; select flash_attn to use both"
    if has_prompts(config):
        return name, "the adapter puts a prompt before each row"
    if problems:
        return name, "; ".join(problem.what for problem in problems)
    if attention != "sdpa" or "attn_implementation" in config.model.options:
        return name, f"the model was loaded with the attention implementation {attention}"
    return name, ""
