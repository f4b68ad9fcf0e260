"""Tensor parallelism: several processes compute each layer together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from sftkit.api import (
    Engine,
    Field,
    Plugin,
    Problem,
    base_of,
    dataclass,
    dtensor_problems,
    hookimpl,
    launch_advice,
    model_config,
    world_size,
)
from sftkit_plugins.tensor_parallel.plan import WHERE, plan_problems

if TYPE_CHECKING:
    from sftkit.api import RunConfig

#: Why other plugins cannot be selected beside this one.
REFUSED = {
    "bitsandbytes": "quantized weights cannot be divided",
    "compile": "compiled layers cannot be divided",
    "gptq": "quantized weights cannot be divided",
    "liger": "its kernels read whole layers",
    "unsloth": "its kernels read whole layers",
    "vision": "no plan covers the part of a model that reads images",
}


@dataclass(frozen=True, kw_only=True)
class TensorParallel(Plugin):
    """Divides each layer among groups of neighbouring processes; each group trains on its own rows."""

    replaces: ClassVar[Mapping[str, str]] = {"parallelism_config": "size"}
    #: Before, torch cannot divide the embeddings of some models.
    requires: ClassVar[tuple[str, ...]] = ("torch>=2.11",)

    size: Annotated[int, Field(description="processes of a group: those of one machine with fast links", ge=2)]

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """What cannot be divided, and numbers of processes that do not fit."""
        yield from self._process_problems()
        for name in sorted(REFUSED.keys() & config.plugins.keys()):
            what = f"the plugins tensor_parallel and {name} cannot be used together: {REFUSED[name]}"
            yield Problem(what, f"plugin {name}", f"drop {name}, or shard the model in another way", ("plugins", name))
        yield from dtensor_problems(config)
        yield from self._train_problems(config)
        name, _ = base_of(config.model.name, config.model.revision)
        if (found := model_config(name, config.model.trust_remote_code)) is not None:
            yield from plan_problems(found, self.size)

    def _process_problems(self) -> Iterator[Problem]:
        processes, size = world_size(), self.size
        if processes == 1:
            what = f"a single process cannot divide a model into {size}"
            yield Problem(what, WHERE, launch_advice(size))
        elif processes % size:
            what = f"{processes} processes cannot form groups of {size}"
            yield Problem(what, f"{WHERE}, option size", f"start a multiple of {size} processes, or change the size")

    def _train_problems(self, config: RunConfig) -> Iterator[Problem]:
        reasons = {
            "eval_use_gather_object": ("objects are gathered once for each process", "remove it"),
            "torch_compile": ("compiled layers cannot be divided", "remove it"),
            "fp16": ("gradients of parts are not scaled", "set train.bf16"),
        }
        for key, (what, fix) in reasons.items():
            if config.train.get(key):
                yield Problem(what, f"train.{key}", fix, ("train", key))

    @hookimpl
    def make_engine(self) -> Engine:
        """Tensor parallelism of this size."""
        from sftkit_plugins.tensor_parallel.engine import TensorParallelEngine

        return TensorParallelEngine(self.size)
