"""The model under an attention implementation, for the time of a context."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from sftkit.errors import ConfigError, Problem
from sftkit.models import undisturbed
from sftkit_plugins.flash_attn.attention import FUNCTIONS, UNDER_WAY, registered
from sftkit_plugins.flash_attn.documents import from_forward

LENGTH = 8  # tokens of each document tried
NAMES = {"flex": "flex_attention"}


@contextlib.contextmanager
def attending(model: Any, implementation: str) -> Iterator[None]:
    """Sets the implementation, and lets each forward know its documents; both are undone at the exit.

    Args:
        model: bare or with an adapter.
        implementation: ``varlen``, ``sdpa_flash``, ``flash_attention_2``, ``flash_attention_3`` or ``flex``.

    Raises:
        ConfigError: if the model does not let its attention be chosen.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    with contextlib.ExitStack() as stack:
        name = implementation
        if implementation in FUNCTIONS:
            name = stack.enter_context(registered(implementation))
        stack.enter_context(_implementation(causal, NAMES.get(name, name)))
        # An adapter calls the model's forward past its hooks, and some models their decoder's past its wrapper's.
        for part in _parts(causal):
            if implementation in FUNCTIONS:
                stack.enter_context(_documents_as_mask(part, apart=implementation == "sdpa_flash"))
            elif implementation != "flex":
                stack.callback(part.register_forward_pre_hook(_documents_as_arguments, with_kwargs=True).remove)
        yield


@contextlib.contextmanager
def _implementation(model: Any, name: str) -> Iterator[None]:
    if not model._can_set_attn_implementation():
        what = f"the model type {model.config.model_type} does not let its attention be chosen"
        raise ConfigError(Problem(what, "plugin flash_attn", "run without flash_attn"))
    before = [(config, config._attn_implementation) for config in _configs(model)]
    try:
        try:
            model.set_attn_implementation(name)
        except (ValueError, ImportError) as error:
            told = " ".join(str(error).split())
            mend = "choose another implementation"
            raise ConfigError(Problem(told, "plugin flash_attn, option implementation", mend)) from error
        yield
    finally:
        for config, old in before:
            config._attn_implementation_internal = old


def _configs(model: Any) -> Iterator[Any]:
    """Every configuration that says which attention a part of the model uses, each once."""
    seen: set[int] = set()
    waiting = [module.config for module in model.modules() if hasattr(module, "set_attn_implementation")]
    while waiting:
        config = waiting.pop()
        if id(config) not in seen:
            seen.add(id(config))
            yield config
            waiting += [part for key in config.sub_configs if (part := getattr(config, key, None)) is not None]


def _parts(model: Any) -> Iterator[Any]:
    """The models inside a model: its decoder, and what wraps that."""
    return (part for part in model.modules() if part is not model and hasattr(part, "set_attn_implementation"))


@contextlib.contextmanager
def _documents_as_mask(part: Any, apart: bool) -> Iterator[None]:
    """The documents of each forward of ``part`` are there when its masks are made."""

    def enter(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if UNDER_WAY.get() is None:
            documents = from_forward(module, args, kwargs, apart)
            UNDER_WAY.set(None if documents is None else (documents, module))
        return args, {name: value for name, value in kwargs.items() if name not in _FLASH_ARGUMENTS}

    def leave(module: Any, *_: Any) -> None:
        under_way = UNDER_WAY.get()
        if under_way is not None and under_way[1] is module:
            UNDER_WAY.set(None)

    with contextlib.ExitStack() as hooks:
        hooks.callback(part.register_forward_pre_hook(enter, with_kwargs=True).remove)
        hooks.callback(part.register_forward_hook(leave, always_call=True).remove)
        yield


_FLASH_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def _documents_as_arguments(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Gives transformers' flash attention the documents of batches with several rows, which it would not see."""
    documents = from_forward(module, args, kwargs, apart=False)
    if documents is None or kwargs.get("cu_seq_lens_q") is not None:
        return None
    values = (documents.cu_seqlens, documents.cu_seqlens, documents.longest, documents.longest)
    return args, {**kwargs, **dict(zip(_FLASH_ARGUMENTS, values, strict=True))}


def prove_isolation(model: Any, implementation: str, autocast: torch.dtype | None = None) -> None:
    """Tries on the model that a document laid behind another has the logits that it has alone.

    Args:
        model: the model under the implementation.
        implementation: its name.
        autocast: type of mixed precision in training; flash kernels take nothing else.

    Raises:
        ConfigError: if they differ by more than rounding.
    """
    embedding = model.get_input_embeddings()
    device = next(embedding.parameters()).device
    ids = torch.arange(2 * LENGTH, device=device)[None] % embedding.num_embeddings
    places = torch.arange(LENGTH, device=device).repeat(2)[None]
    cu_seqlens = torch.tensor([0, LENGTH, 2 * LENGTH], dtype=torch.int32, device=device)
    documents: dict[str, Any] = dict(zip(_FLASH_ARGUMENTS, (cu_seqlens, cu_seqlens, LENGTH, LENGTH), strict=True))
    try:
        with undisturbed(model, autocast):
            both = model(input_ids=ids, position_ids=places, use_cache=False, **documents).logits[0, LENGTH:]
            alone = model(input_ids=ids[:, LENGTH:], use_cache=False).logits[0]
    except (TypeError, AttributeError) as error:
        raise _refusal(model, implementation, f"{type(error).__name__}: {error}") from error
    eps = max(torch.finfo(dtype).eps for dtype in (next(model.parameters()).dtype, alone.dtype))
    apart = float((both.float() - alone.float()).abs().max())
    # Half precision rounds at every layer, differently in batches of another shape; a leak moves logits by far more.
    if not apart <= max(1e-4, 16 * eps) * float(alone.abs().max()):
        raise _refusal(model, implementation, f"behind another document, the logits of one move by {apart:.2g}")


def _refusal(model: Any, implementation: str, seen: str) -> ConfigError:
    what = f"model type {model.config.model_type} does not keep the documents of a batch apart with {implementation}"
    mend = "set padding_free: false, without packing, or run without flash_attn"
    return ConfigError(Problem(f"{what}: {seen}", "plugin flash_attn", mend))
