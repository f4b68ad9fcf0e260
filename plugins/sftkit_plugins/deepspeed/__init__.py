"""DeepSpeed: ZeRO shards optimizer state, gradients and weights among processes, and moves them to the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from sftkit.api import (
    ConfigError,
    Field,
    Plugin,
    Problem,
    dataclass,
    evaluates_only,
    hookimpl,
    sharding_problems,
    train_value,
)

if TYPE_CHECKING:
    from sftkit.api import Engine, PluginSet, RunConfig

CONFIG = "plugin deepspeed, option config"
#: Optimizers that read the shapes of weights.
WHOLE_MATRICES = ("galore", "apollo", "adafactor", "schedule_free")
#: The mixed precision of each half precision.
PRECISION = {"bfloat16": "bf16", "float16": "fp16"}
#: Plugins that cannot train sharded or wrapped weights, and why.
UNSUITED = {
    "bitsandbytes": "quantized weights cannot be partitioned",
    "gptq": "quantized weights cannot be partitioned, and a single process quantizes",
    "unsloth": "unsloth trains with one process",
}


@dataclass(frozen=True, kw_only=True)
class DeepSpeed(Plugin):
    """Shares optimizer state, gradients and, with stage 3, weights among processes by DeepSpeed's ZeRO.

    Source: Rajbhandari et al., 2020, ZeRO: Memory Optimizations Toward Training Trillion Parameter Models
    (arXiv 1910.02054).
    """

    requires: ClassVar[tuple[str, ...]] = ("deepspeed>=0.18",)
    replaces: ClassVar[Mapping[str, str]] = {"deepspeed": "config"}
    conflicts: ClassVar[tuple[str, ...]] = tuple(UNSUITED)

    stage: Annotated[
        Literal[2, 3] | None,
        Field(
            description="of ZeRO: 2 shares optimizer state and gradients, 3 the weights too; by default that of "
            "config, else 2"
        ),
    ] = None
    offload: Annotated[
        Literal["none", "optimizer", "all"],
        Field(
            description="what is kept in the memory of the CPU: nothing, the optimizer, or with stage 3 all: the "
            "weights too"
        ),
    ] = "none"
    config: Annotated[
        str | dict[str, Any] | None,
        Field(description="a DeepSpeed configuration: the path of a JSON file, or a mapping"),
    ] = None

    @hookimpl
    def check_run(self, config: RunConfig, plugins: PluginSet) -> Iterator[Problem]:
        """A configuration that contradicts the options or the section ``train``, and what DeepSpeed cannot do."""
        from sftkit_plugins.deepspeed import configuration

        try:
            given = configuration.read(self.config)
        except configuration.UnreadableError as error:
            yield Problem(str(error), CONFIG, "name a JSON file, or write its mapping here")
            return
        yield from configuration.problems(given, config, CONFIG)
        zero = given.get("zero_optimization")
        zero = zero if isinstance(zero, dict) else {}
        stage = self.stage or zero.get("stage", configuration.DEFAULT_STAGE)
        if self.stage and zero.get("stage", self.stage) != self.stage:
            what = f"stage is {self.stage}, but zero_optimization.stage is {zero['stage']} in the configuration"
            yield Problem(what, "plugin deepspeed, option stage", "remove one of them")
        if self.offload != "none" and any(zero.get(key) for key in ("offload_optimizer", "offload_param")):
            what = "the configuration says what is offloaded"
            yield Problem(what, "plugin deepspeed, option offload", "remove one of them")
        if self.offload == "all" and stage != 3:
            what = f"stage {stage} keeps all weights on each device"
            yield Problem(what, "plugin deepspeed, option offload", "set stage=3, or offload=optimizer")
        if stage == 3 and config.data.streaming and plugins.fillers("make_packer"):
            what = "with packed rows of a stream, processes would wait for each other in different batches"
            yield Problem(what, "plugin deepspeed, option stage", "set stage=2, or data.streaming: false")
        yield from sharding_problems(config)
        yield from _unsupported(config)
        for name in plugins.fillers("make_optimizer"):
            what = f"plugin {name} makes the optimizer, and DeepSpeed needs that of train.optim"
            yield Problem(what, "plugin deepspeed", f"drop plugin {name}, or shard the model by another plugin")

    @hookimpl(wrapper=True)
    def adapt_model(self, new_token_ids: list[int]) -> Iterator[Any]:
        """Says why an adapter fails that trains new tokens under ZeRO-3 on the CPU.

        Raises:
            ConfigError: if it does.
        """
        import torch
        from transformers.integrations import is_deepspeed_zero3_enabled

        try:
            return (yield)
        except Exception as error:
            if not new_token_ids or not is_deepspeed_zero3_enabled() or torch.cuda.is_available():
                raise
            what = f"peft trains {len(new_token_ids)} new tokens under ZeRO-3 only on CUDA devices"
            fix = "set stage=2, or drop the plugin that adds the tokens"
            raise ConfigError(Problem(what, "plugin deepspeed, option stage", fix)) from error

    @hookimpl
    def make_engine(self, config: RunConfig) -> Engine:
        """The engine that shards by DeepSpeed."""
        from sftkit_plugins.deepspeed import configuration
        from sftkit_plugins.deepspeed.engine import DeepSpeedEngine

        values = configuration.complete(configuration.read(self.config), self.stage, self.offload)
        return DeepSpeedEngine(values, config)


def _unsupported(config: RunConfig) -> Iterator[Problem]:
    """What a run with DeepSpeed cannot do."""
    if evaluates_only(config):
        yield Problem("a run without steps cannot use DeepSpeed", "plugin deepspeed", "drop it, or raise the steps")
    if config.run.on_nan == "skip":
        what = "DeepSpeed makes a step before its loss and gradients are looked at"
        yield Problem(what, "run.on_nan", "set run.on_nan: stop", ("run", "on_nan"))
    if config.run.save_in_background is True:
        what, key = "all processes write parts of a sharded model", ("run", "save_in_background")
        yield Problem(what, "run.save_in_background", "set it to auto or false", key)
    optimizer = str(train_value(config, "optim"))
    if optimizer.endswith(("lomo", "_layerwise")) or optimizer.startswith(WHOLE_MATRICES):
        what = f"ZeRO flattens the weights, and {optimizer} needs them as matrices"
        yield Problem(what, "train.optim", "use an optimizer such as adamw_torch", ("train", "optim"))
    dtype = _weights_dtype(config)
    if dtype in PRECISION and not config.train.get("bf16") and not config.train.get("fp16"):
        what = f"DeepSpeed trains weights in {dtype} only in mixed precision"
        fix = f"set train.{PRECISION[dtype]}: true, or model.dtype: float32"
        yield Problem(what, "model.dtype", fix, ("model", "dtype"))


def _weights_dtype(config: RunConfig) -> str:
    """The precision of the weights, as far as it is known before they are read."""
    if config.model.dtype != "auto":
        return str(config.model.dtype)
    try:
        saved = json.loads(Path(config.model.name, "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return ""  # on the hub, or for the loader to report
    return str(saved.get("dtype") or saved.get("torch_dtype"))
