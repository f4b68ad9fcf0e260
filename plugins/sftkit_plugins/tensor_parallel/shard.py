"""Divides the layers of a model among the processes of a group, with torch's tensor parallelism."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.nn import functional

from sftkit.api import ConfigError, Problem, base_model, evaluating, mesh_device
from sftkit_plugins.tensor_parallel.plan import (
    COLUMNS,
    COLUMNS_GATHERED,
    OF_HEADS,
    OTHER_WAY,
    ROWS,
    ROWS_OF_WHOLE,
    WHERE,
    plan_of,
    rule_of,
)

TRIED = 4  # tokens of the trial
SAME = 1e-3  # relative difference of the norms of equal gradients, at most


class Replicated(ParallelStyle):
    """A layer that every process has and computes as a whole, or for its own attention heads.

    Its weights are DTensors too, so that norms, optimizers and checkpoints find one kind of tensor.

    Args:
        heads: whether the process's input (``[B, T, heads, D]``) has its own heads alone, so that gradients are sums
            over processes.
    """

    def __init__(self, heads: bool = False) -> None:
        self._heads = heads

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, weight in list(module.named_parameters(recurse=False)):
            placed = distribute_tensor(weight.detach(), device_mesh, [Replicate()], src_data_rank=self.src_data_rank)
            module.register_parameter(name, nn.Parameter(placed, requires_grad=weight.requires_grad))
        return distribute_module(module, device_mesh, _keep, self._enter, _leave)

    def _enter(self, module: nn.Module, inputs: Any, mesh: DeviceMesh) -> Any:
        def placed(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            placement = Shard(value.ndim - 2) if self._heads else Replicate()
            return DTensor.from_local(value, mesh, [placement], run_check=False)

        return tuple(map(placed, inputs))


def _keep(name: str, module: nn.Module, mesh: DeviceMesh) -> None:
    """The weights of a module stay as they are."""


def _leave(module: nn.Module, output: Any, mesh: DeviceMesh) -> Any:
    return output.to_local() if isinstance(output, DTensor) else output


class VocabularyParallel(nn.Module):
    """An output head of which each process has the rows of its part of the vocabulary; it returns all logits.

    Args:
        head: the whole head; its weights are divided.
        mesh: of the processes.
    """

    weight: Any
    bias: Any

    def __init__(self, head: nn.Linear, mesh: DeviceMesh) -> None:
        super().__init__()
        self.in_features, self.out_features = head.in_features, head.out_features
        self.weight = split(head.weight, mesh)
        self.register_parameter("bias", None if head.bias is None else split(head.bias, mesh))

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states ``[..., D]`` of every process → logits ``[..., V]`` in every process."""
        whole = DTensor.from_local(hidden, self.weight.device_mesh, [Replicate()], run_check=False)
        logits: Any = functional.linear(whole, self.weight, self.bias)
        return logits.redistribute(placements=[Replicate()]).to_local()


def split(weight: Tensor, mesh: DeviceMesh) -> nn.Parameter:
    """A parameter of which each process has some rows."""
    placed = distribute_tensor(weight.detach(), mesh, [Shard(0)], src_data_rank=None)
    return nn.Parameter(placed, requires_grad=weight.requires_grad)


def shard(model: Any, mesh: DeviceMesh) -> None:
    """Divide a model; each process has loaded all of it.

    Args:
        model: bare or with LoRA adapters; it is changed.
        mesh: of the processes that share it.

    Raises:
        ConfigError: if a layer cannot be divided.
    """
    causal = base_model(model)
    embeddings, head = causal.get_input_embeddings(), causal.get_output_embeddings()
    if type(head) is not nn.Linear or not isinstance(embeddings, nn.Embedding):
        what = f"the output head or the embeddings of {type(causal).__name__} are not plain layers"
        raise ConfigError(Problem(what, WHERE, OTHER_WAY))
    tied = head.weight is embeddings.weight
    styles = dict(_styles(causal, embeddings, head))
    divided = VocabularyParallel(head, mesh)
    causal.set_output_embeddings(divided)
    for module, style in styles.items():
        parallelize_module(module, mesh, style, src_data_rank=None)
    if tied:
        divided.weight = embeddings.weight


def _styles(causal: Any, embeddings: nn.Module, head: nn.Module) -> Iterator[tuple[nn.Module, ParallelStyle]]:
    """How each module with weights of its own is divided, but the head."""
    decoder = getattr(causal, causal.base_model_prefix)
    prefix = next(name for name, module in causal.named_modules() if module is decoder) + "."
    plan = plan_of(causal.config)
    for name, module in causal.named_modules():
        own = [name for name, _ in module.named_parameters(recurse=False)]
        if module is head or not own:
            continue
        if any(True for _ in module.children()):
            what = f"{type(module).__name__} has weights beside its layers, such as {name}.{own[0]}"
            raise ConfigError(Problem(what, WHERE, OTHER_WAY))
        if module is embeddings:
            yield module, RowwiseParallel(input_layouts=Replicate())
        else:
            yield module, _style(plan, name.removeprefix(prefix), module)


def _style(plan: dict[str, str], name: str, module: nn.Module) -> ParallelStyle:
    """Of a low-rank pair, that factor is divided which shares its dimension with the layer's divided one."""
    layer, part = _layer_of(name)
    rule = rule_of(plan, layer)
    if not rule and (around := next((each for each in _around(name) if rule_of(plan, each)), "")):
        what, fix = f"{name} cannot be divided with {around}", "use LoRA without DoRA, on single layers"
        raise ConfigError(Problem(what, WHERE, fix))
    if rule in ("", OF_HEADS):
        return Replicated(heads=rule == OF_HEADS)
    if not isinstance(module, nn.Linear):
        raise ConfigError(Problem(f"{name} is a {type(module).__name__}, and not a linear layer", WHERE, OTHER_WAY))
    if rule in (COLUMNS, COLUMNS_GATHERED) and part != "lora_A":
        return ColwiseParallel(output_layouts=Shard(-1) if rule == COLUMNS else Replicate())
    if rule in (ROWS, ROWS_OF_WHOLE) and part != "lora_B":
        return RowwiseParallel(input_layouts=Shard(-1) if rule == ROWS else Replicate())
    return Replicated()


def _layer_of(name: str) -> tuple[str, str]:
    """The layer that a module of an adapter belongs to, and which part of it the module is; else the module itself."""
    layer, _, last = name.rpartition(".")
    if last == "base_layer":
        return layer, last
    parent, _, part = layer.rpartition(".")
    return (parent, part) if part in ("lora_A", "lora_B") else (name, "")


def _around(name: str) -> Iterator[str]:
    """The modules that a module is in, from the innermost."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def settle_gradients(model: Any, mesh: DeviceMesh) -> None:
    """Let every process get the whole gradients of the weights that all have; found by a trial on a few tokens.

    Gradients of layers that are computed for the attention heads of each process are summed. A layer that is computed
    so, but is not among the rules of the plan, gets other gradients in each process.

    Args:
        model: the divided model, with its weights.
        mesh: of the processes that share it.

    Raises:
        ConfigError: in every process, if a gradient differs between processes.
    """
    embeddings = base_model(model).get_input_embeddings()
    tokens = torch.arange(TRIED, device=mesh_device(mesh))[None] % embeddings.num_embeddings
    with evaluating(model), torch.enable_grad():
        logits = model(input_ids=tokens, use_cache=False)["logits"]
        logits.float().logsumexp(-1).sum().backward()
    shared = {name: weight for name, weight in model.named_parameters() if weight.grad is not None}
    norms = []
    for weight in shared.values():
        if any(placement.is_partial() for placement in weight.grad.placements):
            weight.register_hook(_whole)
        if weight.placements == (Replicate(),) == weight.grad.placements:
            norms.append(weight.grad.to_local().double().norm())
        else:
            norms.append(torch.zeros((), dtype=torch.double, device=tokens.device))
    model.zero_grad()
    found = torch.stack(norms) if norms else torch.zeros(0, dtype=torch.double)
    low, high = found.clone(), found.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN, group=mesh.get_group())
    dist.all_reduce(high, dist.ReduceOp.MAX, group=mesh.get_group())
    different = (high - low > SAME * high).tolist()
    if name := next((name for name, wrong in zip(shared, different, strict=True) if wrong), ""):
        what = f"the plan of model type {model.config.model_type} is incomplete: gradients of {name} differ"
        raise ConfigError(Problem(what, WHERE, OTHER_WAY))


def _whole(gradient: DTensor) -> DTensor:
    return gradient.redistribute(placements=[Replicate()])
