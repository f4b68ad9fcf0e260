"""The model that a plugin loads is what was asked for, and has a row for each token."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from sftkit.errors import Problem, RunError
from sftkit.models.quantized import quantization_settings
from sftkit.plugin.base import option_names

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet


def require_model(model: Any, hook: str, plugins: PluginSet) -> None:
    """Check that a hook returned a causal language model.

    Args:
        model: what it returned.
        hook: its name.
        plugins: the selected plugins.

    Raises:
        RunError: if it is none.
    """
    what = _not_a_model(model)
    if what:
        fix = "return a causal language model of transformers, such as AutoModelForCausalLM loads"
        raise RunError(Problem(what, plugins.responsible(hook), fix))


def _not_a_model(model: Any) -> str:
    name = type(model).__name__
    if not callable(getattr(model, "get_output_embeddings", None)) or not hasattr(model, "config"):
        return f"it returns an object of type {name}, which is no model of transformers"
    if model.get_output_embeddings() is None:
        return f"it returns {name}, which has no output embeddings and computes no logits"
    return ""


def require_dtype(model: Any, config: RunConfig, plugins: PluginSet) -> None:
    """Check that a model was loaded in ``model.dtype``.

    Quantized weights have dtypes of their own, and a loader with an option ``dtype`` decides itself.

    Raises:
        RunError: if it was loaded in another one.
    """
    import torch

    wanted = None if config.model.dtype == "auto" else getattr(torch, config.model.dtype)
    loader = plugins.first_filler("load_model")
    decides = [item for item in plugins.selected if item.name == loader and "dtype" in option_names(type(item.plugin))]
    if wanted is None or decides or quantization_settings(model):
        return
    sizes: Counter[torch.dtype] = Counter()
    for weight in model.parameters():
        if weight.is_floating_point():
            sizes[weight.dtype] += weight.numel()
    most = max(sizes, key=lambda dtype: sizes[dtype], default=wanted)
    halves = [dtype for dtype in sizes if dtype.itemsize < wanted.itemsize]
    if most != wanted or halves:
        found = str((halves or [most])[0]).removeprefix("torch.")
        what = f"it loads weights in {found}, and model.dtype is {config.model.dtype}"
        fix = f"load them in config.model.dtype, or set model.dtype: {found}"
        raise RunError(Problem(what, plugins.responsible("load_model"), fix))


def require_rows(model: Any, tokenizer: Any, plugins: PluginSet) -> None:
    """Check that each token of the tokenizer has a row in the embeddings.

    Raises:
        RunError: if one has none.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
    if tokens > rows > 0:  # sharded tables may be empty here
        what = f"the tokenizer has {tokens:,} tokens, and the embeddings have {rows:,} rows"
        fix = "return True only when each token has a row, as after grow_embeddings"
        raise RunError(Problem(what, plugins.responsible("resize_embeddings"), fix))
