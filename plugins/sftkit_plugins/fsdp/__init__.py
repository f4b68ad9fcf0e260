"""FSDP: the processes of a run shard the model among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from sftkit.api import Engine, Field, Plugin, Problem, dataclass, hookimpl, quantization_of, train_value, world_size

if TYPE_CHECKING:
    from sftkit.api import RunConfig

#: Optimizers of torch whose state is sharded with the weights.
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad")
LAUNCH = "start several: sftkit launch --nproc N run ...; to check it before, WORLD_SIZE=N sftkit check ..."


@dataclass(frozen=True, kw_only=True)
class FSDP(Plugin):
    """Shards weights, gradients and optimizer state among the processes (FSDP2), on GPUs and CPUs."""

    replaces: ClassVar[Mapping[str, str]] = {"fsdp": "", "fsdp_config": ""}
    conflicts: ClassVar[tuple[str, ...]] = ("bitsandbytes", "gptq", "unsloth")

    offload: Annotated[bool, Field(description="keep shards in the CPU's memory while no GPU needs them")] = False
    reshard_after_forward: Annotated[
        bool, Field(description="free a block's weights after its forward; false: keep them until its backward")
    ] = True
    dtype: Annotated[
        Literal["bfloat16"] | None, Field(description="type in which weights are gathered and used; none: their own")
    ] = None
    reduce_dtype: Annotated[
        Literal["float32", "bfloat16"], Field(description="type in which gradients are averaged")
    ] = "float32"

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """What cannot be sharded, or needs several processes."""
        if world_size() == 1:
            yield Problem("a single process has no other to share the model with", "plugin fsdp", LAUNCH)
        if self.offload and config.train.get("use_cpu"):
            what = "a run on the CPU has its weights there already"
            yield Problem(what, "plugin fsdp, option offload", "drop the option, or train.use_cpu")
        if quantization_of(config.model.name) or "quantization_config" in config.model.options:
            fix = "use a model in full precision, or train without plugin fsdp"
            yield Problem("quantized weights cannot be sharded", "model.name", fix, ("model", "name"))
        yield from self._train_problems(config)

    def _train_problems(self, config: RunConfig) -> Iterator[Problem]:
        optimizer = str(train_value(config, "optim") or OPTIMIZERS[0])
        if optimizer not in OPTIMIZERS:
            fix = f"choose one of {', '.join(OPTIMIZERS)}"
            yield Problem(f"the state of {optimizer} cannot be sharded", "train.optim", fix, ("train", "optim"))
        reasons = {
            "fp16": ("gradients of shards are not scaled", "set the plugin's dtype: bfloat16"),
            "bf16_full_eval": ("sharded weights cannot be converted", "set the plugin's dtype: bfloat16"),
            "fp16_full_eval": ("sharded weights cannot be converted", "set the plugin's dtype: bfloat16"),
            "torch_compile": ("compiled models are not sharded", "remove it"),
        }
        for key, (what, fix) in reasons.items():
            if config.train.get(key):
                yield Problem(what, f"train.{key}", fix, ("train", key))
        if train_value(config, "save_only_model") and train_value(config, "load_best_model_at_end"):
            what = "the best model is loaded from the shards of a checkpoint, which it would not have"
            yield Problem(what, "train.save_only_model", "remove it", ("train", "save_only_model"))

    @hookimpl
    def make_engine(self) -> Engine:
        """FSDP with these options."""
        from sftkit_plugins.fsdp.engine import FSDPEngine

        return FSDPEngine(self)
