"""Checkpoints of a sharded model: each process writes its own shards, as safetensors and JSON.

torch reads and writes them with its `HuggingFaceStorageReader` and `HuggingFaceStorageWriter`. The place of a shard
in its tensor is in the header of the safetensors file, so there is no pickled ``.metadata``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from sftkit.errors import Problem, RunError
from sftkit.training.whole import reshard

if TYPE_CHECKING:
    from torch import Tensor, nn

#: In a checkpoint: the shards of the weights, those of the optimizer's state, and its values that are no tensors.
WEIGHTS, OPTIMIZER, VALUES = "sharded_weights", "optimizer_shards", "optimizer.json"
#: Hyperparameters of a group that a schedule changes; the others are those of the configuration.
SCHEDULED = ("lr", "initial_lr")
#: Bytes of a file before it is split among processes; a file is put together in memory before it is written.
FILE_BYTES = 1 << 30


def save(model: nn.Module, optimizer: Any, directory: Path, frozen: bool) -> None:
    """Write weights and state into a checkpoint; called by all processes.

    Args:
        model: the sharded model.
        optimizer: its optimizer.
        directory: the checkpoint.
        frozen: whether weights that are not trained are written too.
    """
    reshard(model)
    _write(weights_of(model, frozen), directory / WEIGHTS)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            name = names[id(parameter)]
            if torch.is_tensor(value):
                tensors[f"{name}/{key}"] = value
            elif value is not None:
                values.setdefault(name, {})[key] = value
    _write(tensors, directory / OPTIMIZER)
    if dist.get_rank() == 0:
        groups = [{name: group[name] for name in SCHEDULED if name in group} for group in optimizer.param_groups]
        text = json.dumps({"groups": groups, "values": values})
        (directory / VALUES).write_text(text, encoding="utf-8")


def load_weights(model: nn.Module, directory: Path, frozen: bool) -> None:
    """Read the weights that `save` has written, by as many or another number of processes. Changes the model.

    Raises:
        RunError: if the checkpoint has no shards, or not those of this model.
    """
    reshard(model)
    _read(weights_of(model, frozen), directory / WEIGHTS)


def load_optimizer(model: nn.Module, optimizer: Any, directory: Path) -> None:
    """Read the state of the optimizer that `save` has written. Changes the optimizer.

    Raises:
        RunError: as of `load_weights`.
    """
    parameters = dict(model.named_parameters())
    shards = _metadata(directory / OPTIMIZER) if (directory / OPTIMIZER).is_dir() else {}
    tensors: dict[str, Tensor] = {}
    for key, stored in shards.items():
        parameter = parameters.get(key.rpartition("/")[0])
        if parameter is None:
            raise _unfit(directory, f"the optimizer has a state of {key.rpartition('/')[0]}, which the model lacks")
        if stored.size == parameter.shape:
            tensors[key] = torch.zeros_like(parameter, dtype=stored.properties.dtype, requires_grad=False)
        else:
            tensors[key] = torch.zeros(stored.size, dtype=stored.properties.dtype)
    _read(tensors, directory / OPTIMIZER)
    written = json.loads((directory / VALUES).read_text(encoding="utf-8"))
    states: dict[str, dict[str, Any]] = {name: dict(found) for name, found in written["values"].items()}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        states.setdefault(name, {})[entry] = tensor
    new = optimizer.state_dict()
    if len(new["param_groups"]) != (number := len(written["groups"])):
        raise _unfit(directory, f"the optimizer had {number} groups of weights, and has {len(new['param_groups'])}")
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    state = {number: states[name] for number, name in enumerate(order) if name in states}
    groups = [{**group, **old} for group, old in zip(new["param_groups"], written["groups"], strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def weights_of(model: nn.Module, frozen: bool) -> dict[str, Tensor]:
    """What of a model is written: its parameters, tied ones once, and its buffers of ``state_dict``."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    chosen = {name: value for name, value in model.named_parameters() if frozen or value.requires_grad}
    rest = {name: value for name, value in model.state_dict().items() if name not in parameters}
    return chosen | {name: value for name, value in rest.items() if torch.is_tensor(value)}


def _write(tensors: Mapping[str, Tensor], directory: Path) -> None:
    files, filled = {}, FILE_BYTES
    number = 0
    for name, tensor in tensors.items():
        if filled >= FILE_BYTES:
            number, filled = number + 1, 0
        filled += tensor.numel() * tensor.element_size()
        files[name] = number
    if not files:
        return
    writer = HuggingFaceStorageWriter(str(directory), fqn_to_index_mapping=files, save_distributed=True)
    save_tensors({name: tensor.detach() for name, tensor in tensors.items()}, storage_writer=writer)


def _metadata(directory: Path) -> dict[str, TensorStorageMetadata]:
    found = HuggingFaceStorageReader(str(directory)).read_metadata().state_dict_metadata
    return {name: stored for name, stored in found.items() if isinstance(stored, TensorStorageMetadata)}


def _read(tensors: Mapping[str, Tensor], directory: Path) -> None:
    if not tensors:
        return
    stored = _metadata(directory) if directory.is_dir() else {}
    wrong = [name for name, tensor in tensors.items() if name not in stored or stored[name].size != tensor.shape]
    if wrong:
        what = f"{len(wrong)} tensors are missing or have another shape, such as {wrong[0]}"
        raise _unfit(directory.parent, what)
    with torch.no_grad():
        state = {name: tensor.detach() for name, tensor in tensors.items()}
        load_tensors(state, storage_reader=HuggingFaceStorageReader(str(directory)))


def _unfit(directory: Path, what: str) -> RunError:
    fix = "resume with the plugins with which the run began, or start again with --overwrite"
    return RunError(Problem(f"the checkpoint is not of this model: {what}", str(directory), fix))
