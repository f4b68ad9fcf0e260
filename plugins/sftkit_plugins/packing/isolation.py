"""Whether the documents of a packed row see each other, tried on the model itself."""

from __future__ import annotations

import inspect
from typing import Any

from sftkit.errors import ConfigError, Problem
from sftkit.models import undisturbed

LENGTH = 8  # tokens of each document tried


def prove_isolation(model: Any, batch_size: int) -> None:
    """Changes the first document of a packed row, and compares the logits of the second.

    Two rows of two documents of 8 tokens, ``position_ids`` restarting and no ``attention_mask``, as in training. They
    go through the model in one batch where training has several rows a batch: some attention implementations isolate
    the documents of single rows only. The model, its modes and the random state are left as they were.

    Raises:
        ConfigError: if the second document's logits change, or the model takes no ``position_ids``.
    """
    import torch

    if not _takes_position_ids(model):
        raise _leaks(model, batch_size, "its forward takes no position_ids")
    embedding = model.get_input_embeddings()
    device = next(embedding.parameters()).device
    first, other, second = torch.arange(3 * LENGTH, device=device).view(3, LENGTH) % len(embedding.weight)
    ids = torch.stack([torch.cat([first, second]), torch.cat([other, second])])
    position_ids = torch.arange(LENGTH, device=device).repeat(2, 2)
    with undisturbed(model):
        parts = zip(ids.split(min(batch_size, 2)), position_ids.split(min(batch_size, 2)), strict=True)
        outputs = [model(input_ids=part, position_ids=places, use_cache=False).logits for part, places in parts]
    logits = torch.cat(outputs)[:, LENGTH:].float()
    # A masked score adds exactly nothing to the softmax, so that equal documents differ by rounding at most.
    tolerance = max(1e-5, 2 * torch.finfo(outputs[0].dtype).eps) * float(logits.abs().max())
    apart = float((logits[0] - logits[1]).abs().max())
    if not apart <= tolerance:
        raise _leaks(model, batch_size, f"another first document moves the second's logits by {apart:.2g}")


def _takes_position_ids(model: Any) -> bool:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = inspect.signature(base.forward).parameters
    return "position_ids" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _leaks(model: Any, batch_size: int, seen: str) -> ConfigError:
    attention = getattr(model.config, "_attn_implementation", None)
    what = f"model type {model.config.model_type} lets packed documents attend to each other"
    what += f" with attention implementation {attention}: {seen}"
    one_row = ", or set train.per_device_train_batch_size: 1" if batch_size > 1 and "flash" in str(attention) else ""
    mend = f"drop packing, or choose another model.options.attn_implementation (sdpa, eager){one_row}"
    return ConfigError(Problem(what, "plugin packing", mend))
