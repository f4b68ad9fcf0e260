"""Packing: several documents in one row, which do not see each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from sftkit.api import Field, Plugin, Problem, dataclass, hookimpl

if TYPE_CHECKING:
    from sftkit.api import Collator, Counts, Packer, RunConfig

Strategy = Literal["best_fit", "wrapped"]


@dataclass(frozen=True, kw_only=True)
class Packing(Plugin):
    """Packs several documents into each row of `data.max_length` tokens, isolated from each other.

    Before training starts, the model is tried on packed rows. If their documents attend to each other, it gets a
    block-diagonal mask; if that does not help, the run is refused.

    Sources: best-fit packing after Ding et al., 2024 (arXiv 2404.10830, section 2), with the classic best-fit
    decreasing rule; ``wrapped`` is the constant-length stream of common language-model training.
    """

    replaces: ClassVar[Mapping[str, str]] = {"packing": ""}

    strategy: Annotated[
        Strategy,
        Field(description="best_fit: whole documents; wrapped: one stream cut into rows of exactly data.max_length"),
    ] = "best_fit"
    eval: Annotated[
        bool | Strategy,
        Field(
            description="how evaluation sets are packed: not at all, like the training data (true), or with a strategy"
        ),
    ] = False
    concat_token_id: Annotated[
        int | None, Field(ge=0, description="wrapped: token to append to each document that does not end with it")
    ] = None
    infinite: Annotated[
        bool,
        Field(description="wrapped: fill the last training row by starting over; otherwise it stays short"),
    ] = False
    keep_short: Annotated[
        bool,
        Field(
            description="wrapped: keep a shorter last row; false: it is dropped and counted, also in evaluation sets"
        ),
    ] = True

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Refuse options of ``wrapped`` without that strategy, and contradicting options for the last row."""
        if "wrapped" not in (self.strategy, self.eval):
            changed = {"concat_token_id": self.concat_token_id is not None, "infinite": self.infinite}
            for name in [name for name, is_set in {**changed, "keep_short": not self.keep_short}.items() if is_set]:
                what = f"{name} works only with strategy wrapped"
                key = ("plugins", "packing", name)
                yield Problem(what, f"plugin packing, option {name}", f"set strategy: wrapped, or drop {name}", key)
        elif self.infinite and not self.keep_short:
            what = "infinite fills the last row, so there is no short row to drop"
            yield Problem(
                what, "plugin packing, option keep_short", "set only one of them", ("plugins", "packing", "keep_short")
            )

    @hookimpl
    def make_packer(self, split: str, config: RunConfig, counts: Counts) -> Packer | None:
        """A packer for rows of at most ``config.data.max_length`` tokens; None for sets that are not packed."""
        from sftkit_plugins.packing.rows import BestFit, Wrapped

        choice = self.strategy if split == "train" or self.eval is True else self.eval
        if choice is False:
            return None
        if choice == "best_fit":
            return BestFit(split, config.data.max_length, counts)
        return Wrapped(
            split,
            config.data.max_length,
            counts,
            self.concat_token_id,
            endless=self.infinite and split == "train",
            keep_short=self.keep_short,
        )

    @hookimpl
    @contextmanager
    def training_context(self, model: Any, config: RunConfig, rows: Any, collator: Collator | None) -> Iterator[None]:
        """The model isolates the documents of a row, which is proved on entry, on batches of the run."""
        from sftkit.api import autocast_type, train_value
        from sftkit_plugins.packing.isolation import isolated, trials_of

        sizes = [train_value(config, "per_device_train_batch_size")]
        if self.eval:
            sizes.append(train_value(config, "per_device_eval_batch_size"))
        trials = trials_of(model, rows, collator, max(map(int, sizes)), config.data.max_length)
        with isolated(model, trials, autocast_type(config.train)):
            yield
