"""From a model that one process has loaded to the shards of all: nothing but single tensors is ever whole elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from sftkit.errors import Problem, RunError
from sftkit.models.inspect import base_model

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed.device_mesh import DeviceMesh

#: Attributes of the model that say how it generates and what is saved, which every process takes from the first.
CONFIGURATIONS = ("config", "generation_config")


class Structure(NamedTuple):
    """The tensors of a model by name, with their shapes and types, and what else processes must agree on.

    Attributes:
        parameters: of each parameter, its shape, its type, and whether it is trained; a tied one is listed once.
        buffers: of each buffer and each tensor that is a plain attribute of a module, its shape and type.
        configurations: the model's `CONFIGURATIONS`.
    """

    parameters: dict[str, tuple[tuple[int, ...], torch.dtype, bool]]
    buffers: dict[str, tuple[tuple[int, ...], torch.dtype]]
    configurations: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module) -> Structure:
        """The structure of a model."""
        base = base_model(model)
        return cls(
            {name: (tuple(p.shape), p.dtype, p.requires_grad) for name, p in model.named_parameters()},
            {name: (tuple(b.shape), b.dtype) for name, _, _, b in _others(model)},
            {name: getattr(base, name, None) for name in CONFIGURATIONS},
        )

    def difference(self, first: Structure) -> str:
        """How a model differs from that of the first process in anything but types; empty if it does not."""
        own, theirs = (
            {**{name: (value[0], value[2]) for name, value in each.parameters.items()}}
            | {name: value[0] for name, value in each.buffers.items()}
            for each in (self, first)
        )
        different = sorted(name for name in {*own, *theirs} if own.get(name) != theirs.get(name))
        if not different:
            return ""
        return f"{len(different)} tensors differ, such as {different[0]}"


def take_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model by name, which leaves the model on the meta device. Tied weights stay tied, and are here
    once; buffers stay where they are.
    """
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                if weight not in made:
                    empty = torch.empty_like(weight, device="meta")
                    made[weight] = torch.nn.Parameter(empty, requires_grad=weight.requires_grad)
                setattr(module, name, made[weight])
    return weights


def agree(model: nn.Module, receives: bool, plugin: str) -> None:
    """Give the model of this process the types and configurations of the first one's. Changes the model.

    Args:
        model: the model, in a process that receives its weights on the meta device.
        receives: whether this one does.
        plugin: the name of the plugin, for messages.

    Raises:
        RunError: in every process, if a model that was built without weights is another one than that which was loaded.
    """
    structure = Structure.of(model)
    shared: list[Any] = [structure if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(shared, src=0)
    first: Structure = shared[0]
    problems: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(problems, structure.difference(first))
    if what := next(filter(None, problems), ""):
        fix = f"use another plugin to load it, or train without plugin {plugin}"
        raise RunError(Problem(f"the model cannot be built without its weights: {what}", f"plugin {plugin}", fix))
    if not receives:
        return
    for name, value in first.configurations.items():
        if value is not None:
            setattr(base_model(model), name, value)
    for name, weight in model.named_parameters():
        weight.data = weight.data.to(first.parameters[name][1])
    for name, module, attribute, buffer in list(_others(model)):
        setattr(module, attribute, buffer.to(first.buffers[name][1]))


def receive(model: nn.Module, weights: dict[str, Tensor], device: torch.device, copies: Any = None) -> None:
    """Fill a sharded model, whose parameters are on the meta device, with the weights of the first process.

    Args:
        model: the model; its parameters are DTensors.
        weights: from `take_weights` in the first process, which is emptied; elsewhere empty.
        device: where the shards are kept.
        copies: the group of the processes that hold the same shards as this one; None if none does.
    """
    buffers = list(_others(model))
    twins = _tied(model)
    model.to_empty(device=device)
    for modules in twins:
        (module, name), *others = modules
        for other, other_name in others:
            setattr(other, other_name, getattr(module, name))
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        mesh, local = parameter.device_mesh, parameter.to_local().detach()
        if copies is None or dist.get_rank(copies) == 0:
            there = local.device if mesh.device_type == local.device.type else mesh_device(mesh)
            whole = weights.pop(name).to(there) if weights else local.new_empty(parameter.shape, device=there)
            local.copy_(distribute_tensor(whole.contiguous(), mesh, parameter.placements).to_local())
        if copies is not None:
            dist.broadcast(local, group=copies, group_src=0)
    for _, module, attribute, buffer in buffers:
        whole = torch.empty_like(buffer, device=device) if buffer.is_meta else buffer.to(device).contiguous()
        dist.broadcast(torch.view_as_real(whole) if whole.is_complex() else whole, src=0)
        setattr(module, attribute, whole)


def mesh_device(mesh: DeviceMesh) -> torch.device:
    """The device of this process in a mesh."""
    if mesh.device_type == "cpu":
        return torch.device("cpu")
    return torch.device(mesh.device_type, torch.accelerator.current_device_index())


def gather(model: nn.Module, names: set[str] | None = None) -> dict[str, Tensor]:
    """The whole weights in the memory of the first process's CPU; empty in the others. Tied weights are one tensor.

    Args:
        model: the sharded model.
        names: those that are needed; None for all.
    """
    reshard(model)
    first = dist.get_rank() == 0
    wholes: dict[int, Tensor] = {}
    found: dict[str, Tensor] = {}
    known = dict(model.named_parameters(remove_duplicate=False))
    for name, value in model.state_dict().items():
        if not torch.is_tensor(value) or (names is not None and name not in names):
            continue
        key = id(known.get(name, value))
        if key not in wholes:
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            wholes[key] = whole.detach().cpu() if first else whole.new_empty(0)
        if first:
            found[name] = wholes[key]
    return found


def reshard(model: nn.Module) -> None:
    """Free what is gathered of a model, so that its parameters are the shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _others(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Buffers, and tensors that are plain attributes: name, module, attribute, tensor."""
    for path, module in model.named_modules():
        attributes = {name: value for name, value in vars(module).items() if torch.is_tensor(value)}
        for name, value in {**module._buffers, **attributes}.items():
            if value is not None:
                yield f"{path}.{name}", module, name, value


def _tied(model: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """The places of each parameter that has several, in the order in which `fully_shard` visits them."""
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(parameter, []).append((module, name))
    return [found for found in places.values() if len(found) > 1]
