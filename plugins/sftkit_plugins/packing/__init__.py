"""Packing: several documents in one row, which do not see each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sftkit.errors import Problem
from sftkit.plugin import Field, Plugin, dataclass, hookimpl

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.data.packs import Packer
    from sftkit.data.tally import Tally

Strategy = Literal["best_fit", "wrapped"]
DEFAULT_BATCH_SIZE = 8  # of transformers.TrainingArguments


@dataclass(frozen=True, kw_only=True)
class Packing(Plugin):
    """Packs several documents into each row of `data.max_length` tokens; they do not see each other.

    Before training starts, the model itself is tried on two packed rows. A model whose documents see each other is
    given a mask that keeps them apart, and refused where that does not help.

    Sources: best-fit packing after Ding et al., 2024 (arXiv 2404.10830, section 2), with the classic best-fit
    decreasing rule; ``wrapped`` is the constant-length stream of common language-model training.
    """

    strategy: Annotated[
        Strategy,
        Field(description="best_fit: whole documents; wrapped: one stream cut into rows of exactly data.max_length"),
    ] = "best_fit"
    eval: Annotated[
        bool | Strategy,
        Field(description="pack evaluation sets: no, as the training data, or by a strategy of their own"),
    ] = False
    concat_token_id: Annotated[
        int | None, Field(ge=0, description="wrapped: token put after each document that does not end with it")
    ] = None
    infinite: Annotated[
        bool, Field(description="wrapped: fill the last training row by starting over; else it stays short")
    ] = False
    keep_short: Annotated[
        bool, Field(description="wrapped: keep a last row that is shorter; else it is left out and counted")
    ] = True

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Refuses options of ``wrapped`` where nothing is wrapped, and two fates of the last row."""
        if "wrapped" not in (self.strategy, self.eval):
            changed = {"concat_token_id": self.concat_token_id is not None, "infinite": self.infinite}
            for name in [name for name, is_set in {**changed, "keep_short": not self.keep_short}.items() if is_set]:
                what = f"{name} works with strategy wrapped only"
                key = ("plugins", "packing", name)
                yield Problem(what, f"plugin packing, option {name}", f"set strategy: wrapped, or drop {name}", key)
        elif self.infinite and not self.keep_short:
            what = "infinite fills the last row, so that there is no short one to leave out"
            yield Problem(what, "plugin packing, option keep_short", "drop one", ("plugins", "packing", "keep_short"))

    @hookimpl
    def make_packer(self, split: str, config: RunConfig, tally: Tally) -> Packer | None:
        """A packer into rows of at most ``config.data.max_length`` tokens; None for sets that are left single."""
        from sftkit_plugins.packing.rows import BestFit, Wrapped

        choice = self.strategy if split == "train" or self.eval is True else self.eval
        if choice is False:
            return None
        if choice == "best_fit":
            return BestFit(split, config.data.max_length, tally)
        return Wrapped(
            split,
            config.data.max_length,
            tally,
            self.concat_token_id,
            endless=self.infinite and split == "train",
            keep_short=self.keep_short,
        )

    @hookimpl
    @contextmanager
    def training_context(self, model: Any, config: RunConfig) -> Iterator[None]:
        """The model keeps the documents of a row apart, which is proven on entry."""
        from sftkit.models import autocast_type
        from sftkit_plugins.packing.isolation import isolated

        sizes = [config.train.get("per_device_train_batch_size", DEFAULT_BATCH_SIZE)]
        if self.eval:
            sizes.append(config.train.get("per_device_eval_batch_size", DEFAULT_BATCH_SIZE))
        with isolated(model, max(map(int, sizes)), autocast_type(config.train)):
            yield
