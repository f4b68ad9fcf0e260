# ruff: noqa: N803, N806 (suffixes are shapes)
"""Isolation of the documents of a packed row: proved on the model itself, or enforced by masks and document borders.

Legend: B rows, T positions of a row.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from sftkit.api import (
    ConfigError,
    Problem,
    Trial,
    UnsuitedBatchError,
    base_model,
    difference_from_alone,
    document_trials,
    replaced_forward,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sftkit.api import Collator

MASKED = ("sdpa", "eager", "flex_attention")  # attention implementations that accept a custom mask
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


@contextmanager
def isolated(model: Any, trials: list[Trial], autocast: torch.dtype | None = None) -> Iterator[None]:
    """A context in which the model isolates the documents of packed rows.

    It does so by itself, or the plugin adds the documents to its masks, or also passes them to its layers.

    Args:
        model: the model.
        trials: batches on which it is tried, from `trials_of`.
        autocast: type of mixed precision in training; some attention kernels take nothing else.

    Raises:
        ConfigError: if nothing works.
    """
    with ExitStack() as stack:
        leak = leak_of(model, trials, autocast)
        if leak is not None:
            stack.enter_context(_enforced(model, trials, autocast, leak))
        yield


@contextmanager
def _enforced(model: Any, trials: list[Trial], autocast: torch.dtype | None, leak: str) -> Iterator[None]:
    still: str | None = ""
    for borders in (False, True) if takes_position_ids(model) else ():
        with documents_known(model, borders):
            still = difference_from_alone(model, trials, autocast)
            if still is None:
                text = "packing: model type %s ignores document boundaries; a block-diagonal mask is added"
                text += ", and its layers get the document borders" if borders else ""
                logging.getLogger("sftkit").info(text, model.config.model_type)
                yield
                return
    raise _refusal(model, trials, leak, still or "")


def trials_of(model: Any, rows: Any, collator: Collator | None, batch_size: int, max_length: int) -> list[Trial]:
    """The batches on which a model is tried.

    Raises:
        ConfigError: if the collator's batches do not contain the rows' tokens.
    """
    try:
        return document_trials(model.config, rows, collator, batch_size, max_length)
    except UnsuitedBatchError as error:
        fix = "use a collator that keeps the rows as they are, or drop packing"
        raise ConfigError(Problem(str(error), "plugin packing", fix)) from error


def leak_of(model: Any, trials: list[Trial], autocast: torch.dtype | None = None) -> str | None:
    """How the model fails to isolate the documents of the batches; None if it isolates them."""
    if not takes_position_ids(model):
        return "its forward takes no position_ids"
    return difference_from_alone(model, trials, autocast)


def takes_position_ids(model: Any) -> bool:
    """Whether the model's forward accepts ``position_ids``, by name or among others."""
    parameters = inspect.signature(base_model(model).forward).parameters
    return "position_ids" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


@contextmanager
def documents_known(model: Any, borders: bool = False) -> Iterator[None]:
    """Inside, every mask that the model makes is limited to documents, if the model gets positions and no mask.

    Masks keep what else limits them, such as a sliding window. They are changed where transformers makes them, since
    many models do not pass it their positions.

    Args:
        model: the model.
        borders: also pass ``seq_idx``, and ``cu_seq_lens_q`` and ``cu_seq_lens_k`` for a single row, which kernels of
            convolutions, state spaces and linear attention take.
    """
    from transformers import AttentionMaskInterface

    causal = base_model(model)
    current: list[Tensor] = []  # the documents of the running forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        positions_BT = kwargs.get("position_ids")
        if positions_BT is None or positions_BT.dim() != 2 or kwargs.get("attention_mask") is not None:
            return plain(*args, **kwargs)
        current.append((positions_BT.diff(dim=1, prepend=positions_BT[:, :1] - 1) != 1).cumsum(1))
        try:
            return plain(*args, **kwargs, **(_borders(current[0]) if borders else {}))
        finally:
            current.clear()

    functions = AttentionMaskInterface._global_mapping
    with ExitStack() as stack:
        for name in {module.config._attn_implementation for module in _parts(causal)} & {*MASKED}:
            stack.callback(functions.__setitem__, name, functions[name])
            functions[name] = _limited(functions[name], current)
        plain = stack.enter_context(replaced_forward(causal, forward))
        yield


def _parts(model: Any) -> Iterator[Any]:
    return (part for part in model.modules() if hasattr(part, "set_attn_implementation"))


def _limited(make_mask: Any, current: list[Tensor]) -> Any:
    """A function that makes a mask, of transformers, with documents as a further limit."""
    from transformers.masking_utils import and_masks, causal_mask_function, packed_sequence_mask_function

    def limited(batch_size: int, q_length: int, kv_length: int, **options: Any) -> Any:
        if current and (batch_size, q_length) == tuple(current[0].shape) and q_length == kv_length:
            within = packed_sequence_mask_function(current[0].to(options.get("device", current[0].device)))
            options["mask_function"] = and_masks(options.get("mask_function", causal_mask_function), within)
            options["allow_is_causal_skip"] = False
        return make_mask(batch_size=batch_size, q_length=q_length, kv_length=kv_length, **options)

    return limited


def _borders(document_BT: Tensor) -> dict[str, Any]:
    """The arguments by which transformers passes documents to kernels."""
    import torch

    found: dict[str, Any] = {"seq_idx": document_BT.int()}
    if len(document_BT) == 1:
        lengths = torch.unique_consecutive(document_BT[0], return_counts=True)[1]
        cu_seq_lens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
        longest = int(lengths.max())
        found |= {"cu_seq_lens_q": cu_seq_lens, "cu_seq_lens_k": cu_seq_lens}
        found |= {"max_length_q": longest, "max_length_k": longest}
    return found


def _refusal(model: Any, trials: list[Trial], seen: str, with_borders: str) -> ConfigError:
    attention = getattr(model.config, "_attn_implementation", None)
    what = f"model type {model.config.model_type} does not isolate packed documents"
    what += f" with attention implementation {attention}: {seen}"
    text = model.config.get_text_config()
    kinds = {*(getattr(text, "layer_types", None) or ())} - ATTENTION
    if "position_ids" not in trials[0].batch:
        fix = "use a collator that keeps position_ids, or drop packing"
    elif kinds:
        what += f"; its layers of type {', '.join(sorted(kinds))} need kernels that take document borders"
        fix = "drop packing, or install these kernels"
        if "Install" in with_borders:  # transformers names them
            fix = f"drop packing, or {with_borders[with_borders.index('Install') :].lower()}"
        elif _several(trials):
            fix += ", and set train.per_device_train_batch_size: 1"
    else:
        one_row = ", set train.per_device_train_batch_size: 1" if _several(trials) and "flash" in str(attention) else ""
        others = " or ".join(name for name in ("sdpa", "eager") if name != attention)
        fix = f"drop packing{one_row}"
        fix += "" if attention == "eager" else f", or try model.options.attn_implementation={others}"
    if limit := next((trial.limit for trial in trials if trial.limit and trial.limit in seen), ""):
        fix = f"set data.max_length to at most {limit.split()[-1]}, or drop packing"
    return ConfigError(Problem(what, "plugin packing", fix))


def _several(trials: list[Trial]) -> bool:
    return any(len(trial.batch["input_ids"]) > 1 for trial in trials)
