"""A forward and backward on fake tensors, which counts the bytes that are live at each moment.

Fake tensors have a shape, a type and a device, and no data: a step of any model takes a fraction of a second. Its
operations are those of the device, so whatever autograd saves, checkpointing drops and autocast copies is counted.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from sftkit.memory.batch import as_rows
from sftkit.memory.head import TracedHead
from sftkit.training.batches import Batch
from sftkit.training.loss import HeadLoss

#: Bytes of the smallest block that glibc never takes from its heap: the maximum of its growing threshold.
HEAP_BLOCK = 1 << 25


@dataclass(frozen=True)
class Peak:
    """Bytes at the moment when most are live, without weights and inputs.

    Attributes:
        activations: tensors that the backward still needs, and those of the operation that is running.
        gradients: gradients of the weights.
        head: tensors of the loss and the output embeddings.
        in_heap: the maximum that is live in blocks smaller than `HEAP_BLOCK`, at whatever moment.
    """

    activations: int
    gradients: int
    head: int
    in_heap: int = 0

    @property
    def total(self) -> int:
        """The sum of the first three."""
        return self.activations + self.gradients + self.head


class LiveBytes(TorchDispatchMode):
    """Counts each storage of a device from the operation that creates it until it is freed.

    Attributes:
        kind: the kind of the storages that are created now.
        peak: bytes by kind at the moment when most were live.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.kind = device, "activations"
        self.live: dict[str, int] = dict.fromkeys(("activations", "gradients", "head"), 0)
        self.peak = dict(self.live)
        self.in_heap = self.most_in_heap = 0
        self._known: Any = WeakIdKeyDictionary(ref_type=weakref.ref)
        self._replaced: dict[int, torch.Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._replaced:
            args, kwargs = tree_map(lambda value: self._replaced.get(id(value), value), (args, kwargs))
        grouped = func is torch.ops.aten._grouped_mm.default
        out = _grouped_product(*args, **(kwargs or {})) if grouped else func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                self._add(value)
        return out

    def ignore(self, tensor: torch.Tensor) -> None:
        """Do not count this tensor and its views."""
        self._known[tensor.untyped_storage()] = [0, self.kind]

    def replace(self, tensor: torch.Tensor, fake: torch.Tensor) -> None:
        """Compute with ``fake`` in every operation that gets this tensor."""
        self._replaced[id(tensor)] = fake

    def is_gradient(self, tensor: torch.Tensor) -> None:
        """Count this tensor as a gradient from now on."""
        entry = self._known.get(tensor.untyped_storage())
        if entry is not None:
            self.live[entry[1]] -= entry[0]
            entry[1] = "gradients"
            self.live["gradients"] += entry[0]

    def _add(self, tensor: torch.Tensor) -> None:
        if tensor.device.type != self.device.type:
            return
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size: int = storage.nbytes()
        entry: list[Any] = [size, self.kind]
        self._known[storage] = entry
        weakref.finalize(storage, self._drop, entry)
        self.live[self.kind] += size
        self.in_heap += size if size < HEAP_BLOCK else 0
        self.most_in_heap = max(self.most_in_heap, self.in_heap)
        if sum(self.live.values()) > sum(self.peak.values()):
            self.peak = dict(self.live)

    def _drop(self, entry: list[Any]) -> None:
        self.live[entry[1]] -= entry[0]
        self.in_heap -= entry[0] if entry[0] < HEAP_BLOCK else 0


def trace_step(
    model: Any,
    batch: Mapping[str, Any],
    device: torch.device,
    *,
    loss: HeadLoss,
    autocast: torch.dtype | None,
    accumulates: bool,
) -> Peak:
    """Run one micro-batch of training on fake tensors. Changes neither the model nor the random state.

    Args:
        model: the model to train, loaded or on the meta device, with its patches and hooks.
        batch: a batch as the collator makes it.
        device: the device of the step.
        loss: computed from the logits of the trained positions.
        autocast: type of mixed precision.
        accumulates: whether gradients of an earlier micro-batch exist already.
    """
    known = Batch.of(as_rows(batch))
    models = [model, *loss.models]
    attributes = [(module, dict(vars(module))) for each in models for module in each.modules()]
    state = torch.get_rng_state()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    counted = LiveBytes(device)
    try:
        model.train()
        with contextlib.ExitStack() as stack:
            stack.enter_context(fake)
            weights, *_ = [stack.enter_context(fake_weights(each, fake, counted, device)) for each in models]
            inputs = {name: _fake_input(value, device) for name, value in known.inputs.items()}
            for value in tree_leaves(inputs):
                if isinstance(value, torch.Tensor):
                    counted.ignore(value)
            mixed = torch.autocast(device.type, autocast) if autocast else contextlib.nullcontext()
            with counted, _gradients_counted(weights, counted, accumulates):
                with mixed:
                    total = TracedHead(model, loss, counted).step(model, inputs, known.targets)
                total.backward()
    finally:
        torch.set_rng_state(state)
        for module, values in attributes:  # a forward may keep tensors, and these have no data
            vars(module).clear()
            vars(module).update(values)
    return Peak(**counted.peak, in_heap=counted.most_in_heap)


@contextlib.contextmanager
def _gradients_counted(weights: list[torch.Tensor], counted: LiveBytes, accumulates: bool) -> Iterator[None]:
    """Counts the gradients of weights as such; if ``accumulates``, they exist from an earlier micro-batch."""
    with torch.autograd.set_multithreading_enabled(False):  # a dispatch mode is active in one thread only
        for weight in weights:
            if accumulates:
                weight.grad = torch.empty_like(weight)
                counted.is_gradient(weight.grad)
            weight.register_post_accumulate_grad_hook(lambda weight: counted.is_gradient(weight.grad))
        yield


def _grouped_product(
    a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor | None = None, bias: Any = None, out_dtype: Any = None
) -> torch.Tensor:
    """A grouped product, as of experts; torch's own for fake tensors supports fewer types than the operation."""
    left, right = a.shape, b.shape
    if len(left) == 2 and len(right) == 2:
        assert offs is not None
        shape: tuple[int, ...] = (len(offs), left[0], right[1])
    elif len(left) == 3 and len(right) == 3:
        shape = (left[0], left[1], right[2])
    else:
        shape = (left[-2], right[-1])
    return a.new_empty(shape, dtype=out_dtype or a.dtype)


def _fake_input(value: Any, device: torch.device) -> Any:
    return torch.empty_like(value, device=device) if isinstance(value, torch.Tensor) else value


@contextlib.contextmanager
def fake_weights(
    model: Any, fake: FakeTensorMode, counted: LiveBytes, device: torch.device
) -> Iterator[list[torch.Tensor]]:
    """The model with fake parameters and buffers inside the context; yields those with a gradient.

    Tensors of other classes, such as quantized weights, stay in their modules, which read their attributes. Operations
    get a fake in their place, unless the class handles operations itself.
    """
    places = [
        (table, name, value)
        for module in model.modules()
        for table in (module._parameters, module._buffers)
        for name, value in table.items()
        if value is not None
    ]
    made: dict[int, torch.Tensor] = {}
    for _, _, value in places:
        if id(value) not in made:
            made[id(value)] = _fake_weight(value, fake, device)
            counted.ignore(made[id(value)])
            if type(value) not in _PLAIN and type(value).__torch_dispatch__ is torch.Tensor.__torch_dispatch__:
                counted.replace(value, made[id(value)])  # torch 2.13 does so by itself, 2.11 does not
    plain = [place for place in places if type(place[2]) in _PLAIN]
    try:
        for table, name, value in plain:
            table[name] = made[id(value)]
        yield [weight for weight in made.values() if weight.requires_grad]
    finally:
        for table, name, value in plain:
            table[name] = value


_PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def _fake_weight(value: torch.Tensor, fake: FakeTensorMode, device: torch.device) -> torch.Tensor:
    if type(value) not in _PLAIN:
        return fake.from_tensor(value)
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    return torch.nn.Parameter(made, requires_grad=value.requires_grad) if value.requires_grad else made
