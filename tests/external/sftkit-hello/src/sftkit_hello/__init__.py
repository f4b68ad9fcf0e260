"""Two plugins for sftkit: a format for greetings, and Gaussian noise on the input embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from sftkit.data.documents import Columns, Document, Formatter, Skipped, Span
from sftkit.plugin.base import Field, Plugin, dataclass, hookimpl

if TYPE_CHECKING:
    from datasets import Features
    from torch import Tensor


class Greetings(Formatter):
    """A greeting, which is only read, and its reply, which is learned."""

    def __call__(self, rows: Columns) -> list[Document | Skipped]:
        """The two spans of each row."""
        pairs = zip(rows["greeting"], rows["reply"], strict=True)
        return [[Span(f"{greeting}\n", trained=False), Span(reply, trained=True)] for greeting, reply in pairs]


@dataclass(frozen=True, kw_only=True)
class HelloFormat(Plugin):
    """Formats data with the columns `greeting` and `reply`; the reply is trained."""

    @hookimpl
    def make_formatter(self, columns: Features) -> Formatter | None:
        """Its formatter, or None for data with other columns, which is left to the next plugin."""
        return Greetings() if {"greeting", "reply"} <= set(columns) else None


@dataclass(frozen=True, kw_only=True)
class HelloNoise(Plugin):
    """Adds Gaussian noise to the input embeddings while training."""

    scale: Annotated[float, Field(gt=0, description="standard deviation of the noise")] = 0.01

    @hookimpl
    @contextmanager
    def inject_noise(self, model: Any) -> Iterator[None]:
        """Noise inside the context while ``model.training``; its exit takes the hook away."""
        import torch

        def add_noise(module: Any, args: Any, embedded: Tensor) -> Tensor:
            return embedded + self.scale * torch.randn_like(embedded) if model.training else embedded

        hook = model.get_input_embeddings().register_forward_hook(add_noise)
        try:
            yield
        finally:
            hook.remove()
