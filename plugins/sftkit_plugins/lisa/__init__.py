"""LISA: a few random layers are trained at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sftkit.api import (
    CHECKPOINTING_KEYS,
    OWN_GROUPS,
    Field,
    Plugin,
    Problem,
    dataclass,
    hookimpl,
    train_value,
    world_size,
)

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from sftkit.api import PluginSet, RunConfig

WHERE = "plugin lisa"


@dataclass(frozen=True, kw_only=True)
class LISA(Plugin):
    """Trains a few random layers at a time, besides embeddings and output head, and draws others every some steps.

    Source: Pan et al., 2024, LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model Fine-Tuning
    (arXiv 2403.17919), algorithm 1.
    """

    conflicts: ClassVar[tuple[str, ...]] = ("deepspeed", "fsdp", "schedule_free", "tensor_parallel")

    layers: Annotated[int, Field(ge=1, description="how many layers are trained at a time")] = 2
    interval: Annotated[int, Field(ge=1, description="optimizer steps after which others are drawn")] = 20
    keep_state: Annotated[
        bool,
        Field(
            description="keep the optimizer's state of a layer while it is frozen, until it is drawn again; this takes "
            "the memory for the state of all layers"
        ),
    ] = False

    @hookimpl
    def check_run(self, config: RunConfig, plugins: PluginSet) -> Iterator[Problem]:
        """Optimizers, engines and compiled models that cannot have their trained weights changed."""
        for name in plugins.fillers("make_engine"):
            what = f"plugin {name} fixes what is trained before the first step"
            yield Problem(what, WHERE, f"drop plugin {name} or plugin lisa")
        optim = str(train_value(config, "optim"))
        if optim.startswith((*OWN_GROUPS, "schedule_free")):
            what = f"{optim} cannot leave out layers"
            yield Problem(what, "train.optim", "choose another one, such as adamw_torch", ("train", "optim"))
        whole = config.plugins.get("compile", {}).get("regions") == "model"
        if whole or config.train.get("torch_compile"):
            what = "the whole model would be compiled anew for each choice of layers"
            where = ("plugins", "compile") if whole else ("train", "torch_compile")
            yield Problem(what, ".".join(where), "use plugin compile with regions: layers", where)
        if world_size() > 1:
            yield from _ddp_problems(config)

    @hookimpl
    def trainer_callbacks(self, config: RunConfig) -> list[TrainerCallback]:
        """One that draws the layers."""
        from sftkit_plugins.lisa.drawing import DrawLayers

        return [DrawLayers(self.layers, self.interval, int(train_value(config, "seed")), self.keep_state)]

    @hookimpl(wrapper=True)
    def reduce_activations(self, model: Any) -> Generator[None, Any, Any]:
        """Lets memory be estimated as if only the largest layers were trained.

        With several processes, or if the optimizer keeps its state, all gradients or states are counted.
        """
        from sftkit_plugins.lisa.drawing import only_largest

        if self.keep_state or world_size() > 1:
            return (yield)
        with only_largest(model, self.layers):
            found: AbstractContextManager[Any] | None = yield
        if not next(iter(model.parameters())).is_meta:
            return found
        both = ExitStack()
        both.enter_context(only_largest(model, self.layers))
        if found is not None:
            both.enter_context(found)
        return both


def _ddp_problems(config: RunConfig) -> Iterator[Problem]:
    """What lets DDP wait for the gradients of frozen layers."""
    name, static = "ddp_find_unused_parameters", "ddp_static_graph"
    found = config.train.get(name)
    keys = [key for key in CHECKPOINTING_KEYS if config.train.get(key)]
    if found is False or (found is None and keys):  # the Trainer's default with checkpointing
        what = "DDP would wait for the gradients of frozen layers"
        yield Problem(what, f"train.{name}", f"set train.{name}: true", ("train", name))
    if config.train.get(static):
        what = "the weights that are trained change, and with them DDP's graph"
        yield Problem(what, f"train.{static}", "remove it", ("train", static))
    for key in keys:
        if (config.train.get(f"{key}_kwargs") or {}).get("use_reentrant"):
            what = "DDP cannot find frozen layers inside reentrant checkpoints"
            yield Problem(what, f"train.{key}_kwargs", "set use_reentrant: false", ("train", f"{key}_kwargs"))
