"""Switches a model to an attention implementation inside a context."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from sftkit.api import ConfigError, Problem, Trial, base_model, difference_from_alone
from sftkit_plugins.flash_attn.attention import CURRENT, FUNCTIONS, flex_registered, registered
from sftkit_plugins.flash_attn.documents import from_forward


@contextlib.contextmanager
def attending(model: Any, implementation: str) -> Iterator[None]:
    """Sets the implementation, and passes each forward its documents. Both are undone on exit.

    Args:
        model: with or without an adapter.
        implementation: ``varlen``, ``sdpa_flash``, ``flash_attention_2``, ``flash_attention_3`` or ``flex``.

    Raises:
        ConfigError: if the model does not support choosing an attention implementation.
    """
    causal = base_model(model)
    with contextlib.ExitStack() as stack:
        name = implementation
        if implementation in FUNCTIONS:
            name = stack.enter_context(registered(implementation))
        elif implementation == "flex":
            name = stack.enter_context(flex_registered())
        stack.enter_context(_implementation(causal, name))
        # Adapters bypass the hooks of the model they wrap, and some models bypass those of their decoder's wrapper.
        for part in _parts(causal):
            if implementation in FUNCTIONS:
                stack.enter_context(_documents_as_mask(part, apart=implementation == "sdpa_flash"))
            elif implementation != "flex":
                stack.callback(part.register_forward_pre_hook(_documents_as_arguments, with_kwargs=True).remove)
        yield


@contextlib.contextmanager
def _implementation(model: Any, name: str) -> Iterator[None]:
    if not model._can_set_attn_implementation():
        what = f"the model type {model.config.model_type} does not support choosing an attention implementation"
        raise ConfigError(Problem(what, "plugin flash_attn", "run without flash_attn"))
    before = [(config, config._attn_implementation) for config in _configs(model)]
    try:
        try:
            model.set_attn_implementation(name)
        except (ValueError, ImportError) as error:
            reason = " ".join(str(error).split())
            fix = "choose another implementation"
            raise ConfigError(Problem(reason, "plugin flash_attn, option implementation", fix)) from error
        yield
    finally:
        for config, old in before:
            config._attn_implementation_internal = old


def _configs(model: Any) -> Iterator[Any]:
    """Every configuration that sets the attention of some part of the model, each once."""
    seen: set[int] = set()
    waiting = [module.config for module in model.modules() if hasattr(module, "set_attn_implementation")]
    while waiting:
        config = waiting.pop()
        if id(config) not in seen:
            seen.add(id(config))
            yield config
            waiting += [part for key in config.sub_configs if (part := getattr(config, key, None)) is not None]


def _parts(model: Any) -> Iterator[Any]:
    """The models inside a model: its decoder, and any wrapper around that."""
    return (part for part in model.modules() if part is not model and hasattr(part, "set_attn_implementation"))


@contextlib.contextmanager
def _documents_as_mask(part: Any, apart: bool) -> Iterator[None]:
    """Sets the documents of each forward of ``part`` before its masks are made."""

    def enter(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if CURRENT.get() is None:
            documents = from_forward(module, args, kwargs, apart)
            CURRENT.set(None if documents is None else (documents, module))
        return args, {name: value for name, value in kwargs.items() if name not in _FLASH_ARGUMENTS}

    def leave(module: Any, *_: Any) -> None:
        current = CURRENT.get()
        if current is not None and current[1] is module:
            CURRENT.set(None)

    with contextlib.ExitStack() as hooks:
        hooks.callback(part.register_forward_pre_hook(enter, with_kwargs=True).remove)
        hooks.callback(part.register_forward_hook(leave, always_call=True).remove)
        yield


_FLASH_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def _documents_as_arguments(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Passes transformers' flash attention the documents of batches with several rows, which it does not detect."""
    documents = from_forward(module, args, kwargs, apart=False)
    if documents is None or kwargs.get("cu_seq_lens_q") is not None:
        return None
    values = (documents.cu_seqlens, documents.cu_seqlens, documents.longest, documents.longest)
    return args, {**kwargs, **dict(zip(_FLASH_ARGUMENTS, values, strict=True))}


def prove_isolation(
    model: Any, implementation: str, trials: Sequence[Trial], autocast: torch.dtype | None = None
) -> None:
    """Tests that documents of a batch have the same logits and gradients as alone.

    Args:
        model: the model, already switched to the implementation.
        implementation: the name of the implementation.
        trials: batches of the run.
        autocast: dtype of mixed precision in training, if any. Flash kernels accept only half precision.

    Raises:
        ConfigError: if they differ by more than rounding.
    """
    reason = difference_from_alone(model, trials, autocast)
    if reason is not None:
        raise _refusal(model, implementation, reason)


def _refusal(model: Any, implementation: str, reason: str) -> ConfigError:
    model_type = model.config.model_type
    what = f"the model type {model_type} does not keep the documents of a batch apart with {implementation}"
    fix = "set padding_free: false and drop packing, or run without flash_attn"
    return ConfigError(Problem(f"{what}: {reason}", "plugin flash_attn", fix))
