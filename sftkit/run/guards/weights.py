"""The weights of a model before and after a plugin was called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Numbers of a tensor that are added up at once: what an addition takes besides the tensor is eight bytes for each.
AT_ONCE = 1 << 22
#: An odd number, so that multiplying by it loses nothing; derived from the golden ratio.
FACTOR = -0x61C8864680B583EB
SHOWN = 2  # names in a message


class Described(NamedTuple):
    """A parameter or buffer, as far as plugins may not change it.

    Attributes:
        identity: equal for tensors that are tied.
        dtype: its dtype.
        shape: its shape.
        device: where it is.
        trained: whether it gets gradients.
        checksum: of its bytes, in their order; 0 on the meta device.
    """

    identity: int
    dtype: torch.dtype
    shape: torch.Size
    device: torch.device
    trained: bool
    checksum: int


@dataclass(frozen=True)
class Weights:
    """The weights of a model at some time: all parameters, and the buffers that are saved with them.

    Attributes:
        tensors: what is known of each, by name.
    """

    tensors: dict[str, Described]

    @classmethod
    def of(cls, model: Any) -> Weights:
        """As they are now. Reads each tensor once, on its device, and waits for the devices once."""
        named = list(_named_tensors(model))
        checksums = _checksums({id(tensor): tensor for _, tensor in named})
        return cls(
            {
                name: Described(
                    id(tensor), tensor.dtype, tensor.shape, tensor.device, tensor.requires_grad, checksums[id(tensor)]
                )
                for name, tensor in named
            }
        )

    def changes(self, after: Weights) -> list[str]:
        """What was changed until later, for people; empty if nothing was.

        Args:
            after: the weights of the same model, later.
        """
        old, new = self.tensors, after.tensors
        both = [name for name in old if name in new]
        pairs = {name: (old[name], new[name]) for name in both}
        found = [
            ("removes", [name for name in old if name not in new]),
            ("adds", [name for name in new if name not in old]),
        ]
        found.append(("freezes", [name for name, (a, b) in pairs.items() if a.trained and not b.trained]))
        found.append(("unfreezes", [name for name, (a, b) in pairs.items() if b.trained and not a.trained]))
        by_dtype: dict[str, list[str]] = defaultdict(list)
        for name, (a, b) in pairs.items():
            if a.dtype != b.dtype:
                by_dtype[f"casts to {str(b.dtype).removeprefix('torch.')}"].append(name)
        found += by_dtype.items()
        found.append(("moves to another device", [name for name, (a, b) in pairs.items() if a.device != b.device]))
        found.append(("changes the shape of", [name for name, (a, b) in pairs.items() if a.shape != b.shape]))
        found.append(("changes the values of", [name for name, (a, b) in pairs.items() if _other_values(a, b)]))
        texts = [f"{what} {listed(names)}" for what, names in found if names]
        return texts + [f"unties {listed(names)}" for names in _untied(self, after)]


def _other_values(a: Described, b: Described) -> bool:
    same_form = (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device)
    return same_form and a.checksum != b.checksum


def _untied(before: Weights, after: Weights) -> list[list[str]]:
    groups: dict[int, list[str]] = defaultdict(list)
    for name, each in before.tensors.items():
        groups[each.identity].append(name)
    found = []
    for names in groups.values():
        kept = [name for name in names if name in after.tensors]
        if len({after.tensors[name].identity for name in kept}) > 1:
            found.append(kept)
    return found


def listed(names: list[str]) -> str:
    """Names in a message, of which only some are shown."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _named_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


def _checksums(tensors: dict[int, Tensor]) -> dict[int, int]:
    """The checksum of each tensor by its key; those on devices are fetched together."""
    import torch

    found: dict[int, int] = {}
    waiting: dict[torch.device, dict[int, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        found[key] = 0
        for number, plain in enumerate(_plain(tensor.detach())):
            if plain.device.type == "cpu":
                found[key] ^= hash((number, _of_bytes(plain)))
            elif plain.device.type != "meta":
                total = _on_device(plain) + number
                waiting[plain.device][key] = waiting[plain.device].get(key, 0) * FACTOR + total
    for totals in waiting.values():
        for key, value in zip(totals, torch.stack([*totals.values()]).tolist(), strict=True):
            found[key] ^= value
    return found


def _plain(tensor: Tensor) -> Iterable[Tensor]:
    """The tensors with memory of their own that one of a subclass consists of, such as a quantized or a sharded one."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return [plain for part in parts if hasattr(part, "detach") for plain in _plain(part.detach())]  # not a DeviceMesh


def _of_bytes(tensor: Tensor) -> int:
    """The checksum of a tensor in the memory of the host."""
    import torch
    import xxhash

    return int(xxhash.xxh3_64_intdigest(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data))


def _on_device(tensor: Tensor) -> Tensor:
    """The checksum of a tensor (int64, a scalar), computed where it is: a polynomial of its numbers."""
    import torch

    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    whole = flat.numel() % 4 == 0 and flat.storage_offset() % 4 == 0
    numbers = flat.view(torch.int32) if whole else flat
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for low in range(0, numbers.numel(), AT_ONCE):
        some = numbers[low : low + AT_ONCE].to(torch.int64)
        odd = torch.arange(1, 2 * len(some), 2, device=tensor.device)
        total = total * FACTOR + (some * odd).sum()
    return total
