"""The peak of a run's memory on its device, item by item."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit.memory.device import Room, device_of, leaves_holes, room_on
from sftkit.memory.optimizer import state_bytes

if TYPE_CHECKING:
    import torch

    from sftkit.config import RunConfig

#: A peak above this share of what there is may not fit: the estimate is that exact, and allocators leave holes.
NEAR = 0.9


@dataclass(frozen=True)
class Estimate:
    """Peak memory of one process of a run on its device, in bytes.

    Attributes:
        items: what is held at the peak, by name.
        room: what there is.
    """

    items: dict[str, int]
    room: Room

    @property
    def total(self) -> int:
        """All items."""
        return sum(self.items.values())

    @property
    def fits(self) -> bool | None:
        """Whether there is room for it; None where that is not known."""
        return None if self.room.most is None else self.total <= self.room.most

    @property
    def near(self) -> bool:
        """Whether it fills so much of the room that it may not fit after all."""
        return self.room.most is not None and self.total > NEAR * self.room.most

    def told(self) -> str:
        """For people: ``about 3.1 GB of 23.4 GB on cpu (activations 2.2 GB, ...)``."""
        most = f" of {gigabytes(self.room.most)}" if self.room.most is not None else ""
        parts = sorted(((size, name) for name, size in self.items.items() if size), reverse=True)
        shown = ", ".join(f"{name} {gigabytes(size)}" for size, name in parts)
        return f"about {gigabytes(self.total)}{most} on {self.room.device} ({shown})"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for ``--json``; sizes in bytes."""
        return {
            "total": self.total,
            "items": self.items,
            "device": self.room.device,
            "available": self.room.most,
            "fits": self.fits,
        }


def gigabytes(size: int | float) -> str:
    """``1.23 GB``, of 10**9 bytes."""
    return f"{size / 1e9:.2f} GB"


def estimate_memory(
    model: Any,
    batch: Mapping[str, torch.Tensor],
    config: RunConfig,
    *,
    loss: Any = None,
    quantized: tuple[int, int] | None = None,
    more: int = 0,
) -> Estimate:
    """Estimate the peak of a training step of this model on this batch, as it is patched now; nothing is changed.

    Args:
        model: the model to train, on its device, or on the meta device: then it is the device of the run that counts.
        batch: the largest batch of the run, as the collator makes it.
        config: the run as resolved.
        loss: the `HeadLoss`; by default that of the trained tokens.
        quantized: of a model that is yet to be quantized, bytes of its weights and of the largest one made whole.
        more: bytes of the process that are still to come, on a CPU.

    Raises:
        Exception: whatever a model raises that cannot be run on fake tensors.
    """
    from sftkit.memory.trace import trace_step
    from sftkit.models import autocast_type
    from sftkit.training.loss import HeadLoss

    train = config.train
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    here = next(iter(tensors)).device
    device = device_of(config) if here.type == "meta" else here
    accumulates = int(train.get("gradient_accumulation_steps", 1)) > 1
    peak = trace_step(
        model, batch, device, loss=loss or HeadLoss(), autocast=autocast_type(train), accumulates=accumulates
    )
    trained = [t for t in tensors if t.requires_grad]
    room = room_on(device)
    held = sum(t.nbytes for t in tensors if t.device.type == device.type)
    items = {"process": max(room.held - held, 0) + more} if device.type == "cpu" else {}
    items["weights"] = sum(t.nbytes for t in tensors) if quantized is None else sum(quantized)
    items["optimizer state"] = state_bytes(train.get("optim"), trained)
    gradients = sum(t.nbytes for t in trained)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        items["gradients between processes"] = gradients
    at_peak = {"gradients": peak.gradients, "activations": peak.activations, "loss head": peak.head}
    if gradients > peak.total:  # the step of the optimizer holds more than the backward
        at_peak = {"gradients": gradients, "activations": 0, "loss head": 0}
    if device.type == "cpu" and leaves_holes():
        at_peak["holes between blocks"] = peak.in_heap
    return Estimate(items | at_peak, room)
