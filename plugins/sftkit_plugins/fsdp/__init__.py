"""FSDP: the processes of a run shard the model among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from sftkit.api import (
    Engine,
    Field,
    Plugin,
    Problem,
    dataclass,
    dtensor_problems,
    hookimpl,
    launch_advice,
    world_size,
)

if TYPE_CHECKING:
    from sftkit.api import RunConfig


@dataclass(frozen=True, kw_only=True)
class FSDP(Plugin):
    """Shards weights, gradients and optimizer state among the processes (FSDP2), on GPUs and CPUs."""

    replaces: ClassVar[Mapping[str, str]] = {"fsdp": "", "fsdp_config": ""}
    conflicts: ClassVar[tuple[str, ...]] = ("bitsandbytes", "gptq", "unsloth")

    offload: Annotated[
        bool,
        Field(
            description="keep the shards in the memory of the CPU while no GPU needs them; the optimizer then "
            "works on the CPU"
        ),
    ] = False
    reshard_after_forward: Annotated[
        bool,
        Field(
            description="free the weights of a block after its forward, and gather them again for its backward; "
            "false: keep them, for more memory and less communication"
        ),
    ] = True
    dtype: Annotated[
        Literal["bfloat16"] | None,
        Field(
            description="type in which weights are gathered and used, by default their own; shards and optimizer "
            "keep that of model.dtype"
        ),
    ] = None
    reduce_dtype: Annotated[
        Literal["float32", "bfloat16"], Field(description="type in which gradients are averaged")
    ] = "float32"

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """What cannot be sharded, or needs several processes."""
        if world_size() == 1:
            yield Problem("a single process cannot share the model with others", "plugin fsdp", launch_advice())
        if self.offload and config.train.get("use_cpu"):
            what = "a run on the CPU has its weights there already"
            yield Problem(what, "plugin fsdp, option offload", "drop the option, or train.use_cpu")
        yield from dtensor_problems(config)
        reasons = {
            "fp16": ("gradients of shards are not scaled", "set the plugin's dtype: bfloat16"),
            "torch_compile": ("compiled models are not sharded", "remove it"),
        }
        for key, (what, fix) in reasons.items():
            if config.train.get(key):
                yield Problem(what, f"train.{key}", fix, ("train", key))

    @hookimpl
    def make_engine(self) -> Engine:
        """FSDP with these options."""
        from sftkit_plugins.fsdp.engine import FSDPEngine

        return FSDPEngine(self)
