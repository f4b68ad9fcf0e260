"""The peak of the memory of a run on its device, item by item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit.config.train_fields import train_value
from sftkit.memory.device import DeviceMemory, device_of, fragments, memory_of
from sftkit.memory.made import optimizer_bytes
from sftkit.ranks import world_size
from sftkit.units import size_text

if TYPE_CHECKING:
    import torch

    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet

#: A peak above this share of the memory may not fit: the estimate has an error, and allocators fragment.
NEAR = 0.9


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory of one process of a run on its device, in bytes.

    Attributes:
        items: bytes at the peak, by name.
        available: the memory of the device.
    """

    items: dict[str, int]
    available: DeviceMemory

    @property
    def total(self) -> int:
        """The sum of the items."""
        return sum(self.items.values())

    @property
    def fits(self) -> bool | None:
        """Whether the peak fits; None if the memory of the device is not known."""
        return None if self.available.most is None else self.total <= self.available.most

    @property
    def near(self) -> bool:
        """Whether the peak takes so much of the memory that it may not fit after all."""
        return self.available.most is not None and self.total > NEAR * self.available.most

    def describe(self) -> str:
        """One line: ``about 3.12 GB of 23.4 GB on cpu (activations 2.21 GB, ...)``."""
        most = f" of {size_text(self.available.most)}" if self.available.most is not None else ""
        items = sorted(((size, name) for name, size in self.items.items() if size), reverse=True)
        shown = ", ".join(f"{name} {size_text(size)}" for size, name in items)
        return f"about {size_text(self.total)}{most} on {self.available.device} ({shown})"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for ``--json``; sizes in bytes."""
        return {
            "total": self.total,
            "items": self.items,
            "device": self.available.device,
            "available": self.available.most,
            "fits": self.fits,
        }


def estimate_memory(
    model: Any,
    batch: Mapping[str, torch.Tensor],
    config: RunConfig,
    *,
    loss: Any = None,
    plugins: PluginSet | None = None,
    quantized: tuple[int, int] | None = None,
    more: int = 0,
) -> MemoryEstimate:
    """Estimate the peak of a training step of the model, as it is patched now, on a batch. Changes nothing.

    Args:
        model: the model to train, on its device; a model on the meta device counts for the device of the run.
        batch: the largest batch of the run, as the collator makes it.
        config: the run as resolved.
        loss: the `HeadLoss`; by default negative log-likelihood.
        plugins: the selected plugins, of which one may make the optimizer; None for that of ``train.optim``.
        quantized: for a model that is to be quantized: bytes of all weights, and of the largest one when restored.
        more: bytes that the process will need in addition, on a CPU.

    Raises:
        Exception: whatever a model raises that does not run on fake tensors.
    """
    from sftkit.memory.trace import trace_step
    from sftkit.models.inspect import autocast_type
    from sftkit.training.loss import HeadLoss

    train = config.train
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    here = next(iter(tensors)).device
    device = device_of(config) if here.type == "meta" else here
    autocast = autocast_type(train)
    accumulates = int(train_value(config, "gradient_accumulation_steps")) > 1
    peak = trace_step(model, batch, device, loss=loss or HeadLoss(), autocast=autocast, accumulates=accumulates)
    trained = [t for t in tensors if t.requires_grad]
    available = memory_of(device)
    held = sum(t.nbytes for t in tensors if t.device.type == device.type)
    items = {"process": max(available.held - held, 0) + more} if device.type == "cpu" else {}
    if here.type not in ("meta", "cpu"):
        items["other tensors"] = max(available.held - held, 0)
    if loss is not None and here.type == "meta":
        items["other models"] = sum(t.nbytes for each in loss.models for t in (*each.parameters(), *each.buffers()))
    items["weights"] = sum(t.nbytes for t in tensors) if quantized is None else sum(quantized)
    items["optimizer state"] = optimizer_bytes(model, config, plugins)
    gradients = sum(t.nbytes for t in trained)
    if world_size() > 1:
        items["gradients between processes"] = gradients
    at_peak = {"gradients": peak.gradients, "activations": peak.activations, "loss head": peak.head}
    if gradients > peak.total:  # the optimizer's step needs more than the backward
        at_peak = {"gradients": gradients, "activations": 0, "loss head": 0}
    if device.type == "cpu" and fragments():
        at_peak["heap fragmentation"] = peak.in_heap
    return MemoryEstimate(items | at_peak, available)
