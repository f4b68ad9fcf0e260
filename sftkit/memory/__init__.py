"""What a training step holds in memory, found by running it without data: on tensors that have a shape and no bytes."""

from sftkit.memory.device import DeviceMemory, device_of, memory_of
from sftkit.memory.estimate import MemoryEstimate, estimate_memory

__all__ = ["DeviceMemory", "MemoryEstimate", "device_of", "estimate_memory", "memory_of"]
