"""Samples: what the model answers before and after training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from sftkit.api import Field, Plugin, Problem, dataclass, hookimpl

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from sftkit.api import RunConfig


@dataclass(frozen=True, kw_only=True)
class Samples(Plugin):
    """Shows greedy completions of held-out rows before and after training, and how many match exactly.

    The rate is logged as ``eval_exact_match``; the first rows are written to ``samples.jsonl`` in the output directory.
    Training itself is the same, bit for bit, with and without this plugin.
    """

    writes: ClassVar[tuple[str, ...]] = ("samples.jsonl",)

    rows: Annotated[int, Field(gt=0, description="held-out rows completed for the exact match")] = 128
    shown: Annotated[int, Field(ge=0, description="rows written to samples.jsonl, from the first")] = 5
    max_new_tokens: Annotated[int, Field(gt=0, description="maximum number of tokens of a completion")] = 64

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Refuse a run without held-out rows, or one that waits for an exact match at each evaluation."""
        if config.data.eval is None:
            fix = "set data.eval, for instance data.eval=0.05, or drop the plugin samples"
            yield Problem("there are no held-out rows to complete", "plugin samples", fix, ("plugins", "samples"))
        if str(config.train.get("metric_for_best_model")).removeprefix("eval_") == "exact_match":
            what = "exact_match is only known before training and when it ends"
            key = ("train", "metric_for_best_model")
            yield Problem(what, "train.metric_for_best_model", "choose another, such as eval_loss", key)

    @hookimpl
    def trainer_callbacks(self, config: RunConfig) -> list[TrainerCallback]:
        """One callback, which acts when training begins and ends."""
        from sftkit_plugins.samples.callback import CompleteSamples

        return [CompleteSamples(self.rows, self.shown, self.max_new_tokens)]
