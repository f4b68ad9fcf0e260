"""Activation checkpointing, chosen from an estimate of the memory that a step takes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sftkit.api import ConfigError, Field, Plugin, Problem, SftkitError, dataclass, hookimpl, size_text

if TYPE_CHECKING:
    from sftkit.api import MemoryEstimate, PluginSet, RunConfig

logger = logging.getLogger("sftkit")

#: From the least recomputation to the least memory.
KINDS = ("none", "selective", "alternating", "full", "full, offloaded")
FIX = (
    "lower train.per_device_train_batch_size and raise train.gradient_accumulation_steps, lower data.max_length, "
    "train adapters (-p peft), or keep less of the optimizer (train.optim=adamw_bnb_8bit)"
)


@dataclass(frozen=True, kw_only=True)
class Activations(Plugin):
    """Keeps fewer activations for the backward pass, but only if the memory requires it.

    Sources: Chen et al., 2016 (arXiv 1604.06174); Korthikanti et al., 2022 (arXiv 2205.05198), section 5.
    """

    checkpointing: Annotated[
        Literal["auto", "none", "selective", "alternating", "full"],
        Field(
            description="none: keep everything; selective: recompute all but matrix products and attention; "
            "full: recompute whole layers; alternating: full and selective by turns; auto: the first of these that "
            "fits, from none over selective and alternating to full"
        ),
    ] = "auto"
    offload: Annotated[
        bool | Literal["auto"],
        Field(description="move what full checkpointing keeps to host memory; auto: only if nothing else fits"),
    ] = "auto"

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Refuses a second setting for checkpointing, and offloading that would have no effect."""
        from sftkit.api import CHECKPOINTING_KEYS, device_of

        for name in CHECKPOINTING_KEYS:
            if config.train.get(name):
                what = "the plugin activations already controls checkpointing"
                fix = f"remove train.{name}, or drop the plugin"
                yield Problem(what, f"train.{name}", fix, ("train", name))
        if self.offload is not True:
            return
        where, key = "plugin activations, option offload", ("plugins", "activations", "offload")
        if self.checkpointing != "full":
            what = f"offload needs checkpointing: full, but checkpointing is {self.checkpointing}"
            yield Problem(what, where, "set checkpointing: full, or offload: auto", key)
        elif device_of(config).type == "cpu":
            what = "offloading has no effect on a CPU, whose memory is the host memory"
            yield Problem(what, where, "remove offload", key)

    @hookimpl
    def reduce_activations(
        self, model: Any, config: RunConfig, batch: Mapping[str, Any], plugins: PluginSet | None
    ) -> AbstractContextManager[None]:
        """Applies the chosen checkpointing inside the context, and restores the model on exit.

        Raises:
            ConfigError: if checkpointing is already on; with ``auto``, if nothing fits or if the memory cannot be
                estimated.
        """
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            what = "the model's activations are already checkpointed, by the model itself or by another plugin"
            fix = "turn that off, or drop the plugin activations"
            raise ConfigError(Problem(what, "plugin activations", fix))
        if self.checkpointing == "auto":
            kind = self._choose(model, config, batch, plugins)
        else:
            kind = "full, offloaded" if self.offload is True else self.checkpointing
        return keeping(kind, model)

    def _choose(self, model: Any, config: RunConfig, batch: Mapping[str, Any], plugins: PluginSet | None) -> str:
        from sftkit.api import device_of

        kinds = KINDS if self.offload == "auto" and device_of(config).type != "cpu" else KINDS[:-1]
        tried: dict[str, MemoryEstimate] = {}
        for kind in kinds:
            found = tried[kind] = _estimate(kind, model, config, batch, plugins)
            if found.available.most is None:
                what = f"the memory of {found.available.device} is not known"
                fix = "set checkpointing to none, selective, alternating or full"
                raise ConfigError(Problem(what, "plugin activations, option checkpointing", fix))
            if found.fits and not found.near:
                sizes = ", ".join(f"{name} {size_text(estimate.total)}" for name, estimate in tried.items())
                most = f"{size_text(found.available.most)} on {found.available.device}"
                logger.info(
                    "activations: checkpointing %s (estimated memory of a step: %s; available: %s)", kind, sizes, most
                )
                return kind
        what = f"a step does not fit, even with checkpointing {kind}: {found.describe()}"
        raise ConfigError(Problem(what, "plugin activations", FIX))


def _estimate(
    kind: str, model: Any, config: RunConfig, batch: Mapping[str, Any], plugins: PluginSet | None
) -> MemoryEstimate:
    from sftkit.api import estimate_memory

    try:
        with keeping(kind, model):
            return estimate_memory(model, batch, config, plugins=plugins)
    except SftkitError:
        raise
    except Exception as error:  # a forward on tensors without data may raise anything
        first = next(iter(str(error).splitlines()), "")
        what = f"the memory of the model cannot be estimated: {type(error).__name__}: {first}"
        fix = "set checkpointing to none, selective, alternating or full"
        raise ConfigError(Problem(what, "plugin activations, option checkpointing", fix)) from error


def keeping(kind: str, model: Any) -> AbstractContextManager[None]:
    """Applies one of the `KINDS` of checkpointing inside the context."""
    from sftkit.api import checkpointed, full_checkpointing, offloaded_checkpointing, selective_checkpointing

    if kind == "none":
        return nullcontext()
    functions: dict[str, Callable[[], Any]] = {
        "selective": selective_checkpointing,
        "full": full_checkpointing,
        "full, offloaded": lambda: offloaded_checkpointing(full_checkpointing(), pin_memory=True),
    }
    if kind == "alternating":
        return checkpointed(model, full_checkpointing(), every=2, between=selective_checkpointing())
    return checkpointed(model, functions[kind]())
