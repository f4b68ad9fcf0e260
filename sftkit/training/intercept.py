"""Another output of the module that computes a model's logits, during single calls of the model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sftkit.models.inspect import base_model
from sftkit.training.attributes import replaced


class Call:
    """A call of a model whose head returns ``function`` of its input (``[B, T, D]``) in place of logits."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function

    def answer(self, hidden: Tensor) -> Tensor:
        """The head's output."""
        return self._function(hidden)

    def finish(self, outputs: Any) -> Any:
        """The model's outputs, as its forward returns them."""
        return outputs


class Forwards(NamedTuple):
    """The forwards of a model and of its head, before they were replaced."""

    model: Callable[..., Any]
    head: Callable[..., Tensor]


class HeadIntercept:
    """The two forwards of a causal language model that a `Call` changes: its own and that of its output embeddings.

    They stay replaced between calls: whatever wraps or compiles the model keeps the functions that it finds.

    Args:
        model: the model, bare or with adapters.
    """

    def __init__(self, model: Any) -> None:
        self.causal = base_model(model)
        self.module: nn.Module | None = self.causal.get_output_embeddings()
        prefix = self.causal.base_model_prefix
        self.decoder: Any = getattr(self.causal, prefix, None) or getattr(self.causal, "model", None)
        self._original: Forwards | None = None
        self._call: Call | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Calls are possible inside; after it, the model is unchanged. Contexts can be nested."""
        if self.module is None or self._original is not None:
            yield
            return
        with (
            replaced_forward(self.causal, self._causal_forward) as of_model,
            replaced_forward(self.module, self._head_forward) as of_head,
            replaced(self, "_original", Forwards(of_model, of_head)),
        ):
            yield

    @property
    def original(self) -> Forwards:
        """The forwards before they were replaced; only inside `installed`."""
        assert self._original is not None, "the forwards are not installed"
        return self._original

    def calling(self, call: Call) -> AbstractContextManager[None]:
        """Inside the context, the forwards belong to this call."""
        return replaced(self, "_call", call)

    @torch.compiler.disable
    def _head_forward(self, hidden: Tensor, *args: Any, **options: Any) -> Tensor:
        return self.original.head(hidden, *args, **options) if self._call is None else self._call.answer(hidden)

    def _causal_forward(self, *args: Any, **options: Any) -> Any:
        outputs = self.original.model(*args, **options)
        return outputs if self._call is None else self._call.finish(outputs)


@contextmanager
def replaced_forward(module: Any, forward: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """The module with another forward of the same signature; yields the former one."""
    before, own = module.forward, "forward" in vars(module)
    # A plain function: accelerate takes a bound method apart and binds it to the model.
    made = functools.wraps(before)(lambda *arguments, **options: forward(*arguments, **options))
    try:
        with replaced(module, "forward", made):
            yield before
    finally:
        if not own:
            vars(module).pop("_original_forward", None)  # set by accelerate, whose wrapper was removed with ours
