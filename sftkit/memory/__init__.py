"""What a training step holds in memory, found by running it without data: on tensors that have a shape and no bytes."""

from sftkit.memory.device import Room, device_of, room_on
from sftkit.memory.estimate import Estimate, estimate_memory

__all__ = ["Estimate", "Room", "device_of", "estimate_memory", "room_on"]
