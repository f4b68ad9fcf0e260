"""torch's Muon and AdamW as one optimizer, with one state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class MuonAndAdamW(Optimizer):
    """An optimizer whose groups and states are those of two others, which make its steps.

    Args:
        matrices: the weights of Muon.
        options: of `torch.optim.Muon`.
        adamw: the optimizer of the other weights; None if there are none.
    """

    def __init__(self, matrices: list[torch.Tensor], options: dict[str, Any], adamw: Optimizer | None) -> None:
        muon = torch.optim.Muon([{"params": matrices, "name": "muon"}], **options)
        self._parts = [muon] if adamw is None else [muon, adamw]
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the parts have these groups and this state, which a schedule and a checkpoint change."""
        first = 0
        for part in self._parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            first = last

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As torch loads a state: it replaces groups and state."""
        super().__setstate__(state)
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]
        """A step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss
