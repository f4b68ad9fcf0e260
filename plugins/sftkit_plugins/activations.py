"""Activation checkpointing, chosen from an estimate of the memory that a step takes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sftkit.api import ConfigError, Field, Plugin, Problem, SftkitError, dataclass, hookimpl

if TYPE_CHECKING:
    from sftkit.api import MemoryEstimate, RunConfig

logger = logging.getLogger("sftkit")

#: From the one that computes least again to the one that keeps least.
KINDS = ("none", "selective", "full", "full, offloaded")
FIX = (
    "lower train.per_device_train_batch_size and raise train.gradient_accumulation_steps, lower data.max_length, "
    "train adapters (-p peft), or keep less of the optimizer (train.optim=adamw_bnb_8bit)"
)


@dataclass(frozen=True, kw_only=True)
class Activations(Plugin):
    """Keeps less of the forward for the backward, and only as little as the memory makes it necessary.

    Sources: Chen et al., 2016 (arXiv 1604.06174); Korthikanti et al., 2022 (arXiv 2205.05198), section 5.
    """

    checkpointing: Annotated[
        Literal["auto", "none", "selective", "full"],
        Field(
            description="none: keep everything; selective: compute again all but matrix products and attention; "
            "full: compute whole layers again; auto: the first of these that fits"
        ),
    ] = "auto"
    offload: Annotated[
        bool | Literal["auto"],
        Field(description="hold what full checkpointing keeps in the host's memory; auto: where nothing else fits"),
    ] = "auto"

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Refuses a second switch, and moving off a device what is not on one."""
        from sftkit.api import CHECKPOINTING_KEYS, device_of

        for name in CHECKPOINTING_KEYS:
            if config.train.get(name):
                what = "the plugin activations chooses what is checkpointed"
                fix = f"drop train.{name}, or drop the plugin"
                yield Problem(what, f"train.{name}", fix, ("train", name))
        if self.offload is not True:
            return
        where, key = "plugin activations, option offload", ("plugins", "activations", "offload")
        if self.checkpointing != "full":
            what = f"what is moved is what full checkpointing keeps, and checkpointing is {self.checkpointing}"
            yield Problem(what, where, "set checkpointing: full, or offload: auto", key)
        elif device_of(config).type == "cpu":
            what = "the run is on a CPU, whose memory is the host's: nothing would be gained"
            yield Problem(what, where, "drop offload", key)

    @hookimpl
    def reduce_activations(
        self, model: Any, config: RunConfig, batch: Mapping[str, Any]
    ) -> AbstractContextManager[None]:
        """The chosen checkpointing inside the context; the model is as it was at its exit.

        Raises:
            ConfigError: if checkpointing is on already; under ``auto``, if nothing fits, or if what the model takes
                cannot be estimated.
        """
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            what = "the model's activations are checkpointed already, by itself or by another plugin"
            fix = "switch it off there, or drop the plugin activations"
            raise ConfigError(Problem(what, "plugin activations", fix))
        if self.checkpointing == "auto":
            kind = self._choose(model, config, batch)
        else:
            kind = "full, offloaded" if self.offload is True else self.checkpointing
        return keeping(kind, model)

    def _choose(self, model: Any, config: RunConfig, batch: Mapping[str, Any]) -> str:
        from sftkit.api import device_of

        kinds = KINDS if self.offload == "auto" and device_of(config).type != "cpu" else KINDS[:-1]
        tried: dict[str, MemoryEstimate] = {}
        for kind in kinds:
            found = tried[kind] = _estimate(kind, model, config, batch)
            if found.available.most is None:
                what = f"how much memory there is on {found.available.device} is not known"
                raise ConfigError(Problem(what, "plugin activations", "set its option checkpointing"))
            if found.fits and not found.near:
                sizes = ", ".join(f"{name} {told.total / 1e9:.2f} GB" for name, told in tried.items())
                most = f"{found.available.most / 1e9:.2f} GB on {found.available.device}"
                logger.info("activations: checkpointing %s (a step takes about: %s; there is %s)", kind, sizes, most)
                return kind
        what = f"a step does not fit, with checkpointing {kind} either: {found.describe()}"
        raise ConfigError(Problem(what, "plugin activations", FIX))


def _estimate(kind: str, model: Any, config: RunConfig, batch: Mapping[str, Any]) -> MemoryEstimate:
    from sftkit.api import estimate_memory

    try:
        with keeping(kind, model):
            return estimate_memory(model, batch, config)
    except SftkitError:
        raise
    except Exception as error:  # a model's forward may raise anything on tensors without data
        first = next(iter(str(error).splitlines()), "")
        what = f"what the model takes cannot be estimated: {type(error).__name__}: {first}"
        fix = "set its option checkpointing to none, selective or full"
        raise ConfigError(Problem(what, "plugin activations, option checkpointing", fix)) from error


def keeping(kind: str, model: Any) -> AbstractContextManager[None]:
    """A kind of checkpointing of `KINDS`, inside the context."""
    from sftkit.api import checkpointed, full_checkpointing, offloaded_checkpointing, selective_checkpointing

    if kind == "none":
        return nullcontext()
    functions: dict[str, Callable[[], Any]] = {
        "selective": selective_checkpointing,
        "full": full_checkpointing,
        "full, offloaded": lambda: offloaded_checkpointing(full_checkpointing(), pin_memory=True),
    }
    return checkpointed(model, functions[kind]())
