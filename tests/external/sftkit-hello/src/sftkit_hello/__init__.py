"""Three plugins for sftkit: a format for greetings, Gaussian noise on the input embeddings, and a check."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from sftkit.api import (
    Columns,
    Field,
    Formatter,
    Outcome,
    Plugin,
    PreparedRun,
    Span,
    Verdict,
    dataclass,
    hookimpl,
)

if TYPE_CHECKING:
    from datasets import Features
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Greetings(Formatter):
    """A greeting, which is only read, and its reply, which is learned."""

    @property
    def columns_used(self) -> frozenset[str]:
        """The two columns; others are reported as ignored."""
        return frozenset({"greeting", "reply"})

    def __call__(self, rows: Columns) -> list[Outcome]:
        """The two spans of each row."""
        pairs = zip(rows["greeting"], rows["reply"], strict=True)
        return [[Span(f"{greeting}\n", trained=False), Span(reply, trained=True)] for greeting, reply in pairs]


@dataclass(frozen=True, kw_only=True)
class HelloFormat(Plugin):
    """Formats data with the columns `greeting` and `reply`; the reply is trained."""

    api = "1.0"

    @hookimpl
    def make_formatter(self, columns: Features) -> Formatter | None:
        """Its formatter, or None for data with other columns, which is left to the next plugin."""
        return Greetings() if {"greeting", "reply"} <= set(columns) else None


@dataclass(frozen=True, kw_only=True)
class HelloNoise(Plugin):
    """Adds Gaussian noise to the input embeddings while training."""

    api = "1.0"

    scale: Annotated[float, Field(gt=0, description="standard deviation of the noise")] = 0.01

    @hookimpl
    @contextmanager
    def inject_noise(self, model: Any) -> Iterator[None]:
        """Noise inside the context while ``model.training``; its exit removes the hook."""
        import torch

        def add_noise(module: Any, args: Any, embedded: Tensor) -> Tensor:
            return embedded + self.scale * torch.randn_like(embedded) if model.training else embedded

        hook = model.get_input_embeddings().register_forward_hook(add_noise)
        try:
            yield
        finally:
            hook.remove()


@dataclass(frozen=True, kw_only=True)
class HelloCheck(Plugin):
    """Checks that there are enough rows to train on."""

    api = "1.0"

    least: Annotated[int, Field(gt=0, description="rows below which a run is wrong")] = 2

    @hookimpl
    def check_prepared(self, run: PreparedRun) -> Iterator[Verdict]:
        """One verdict on the number of rows."""
        rows = run.data.described["train"]["rows"]
        if rows < self.least:
            yield Verdict("greetings", "wrong", f"there are only {rows} rows", "add some", "data.train")
        else:
            yield Verdict("greetings", "ok", f"there are {rows} rows")
