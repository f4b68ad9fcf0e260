"""The memory of a training step, found by running it on fake tensors, which have a shape and no data."""

from sftkit.memory.device import DeviceMemory, device_of, memory_of
from sftkit.memory.estimate import MemoryEstimate, estimate_memory

__all__ = ["DeviceMemory", "MemoryEstimate", "device_of", "estimate_memory", "memory_of"]
