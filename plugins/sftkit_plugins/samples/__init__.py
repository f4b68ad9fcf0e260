"""Samples: what the model answers before, during and after training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from sftkit.api import Field, Plugin, Problem, dataclass, hookimpl

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from sftkit.api import PreparedRun, RunConfig, Verdict


@dataclass(frozen=True, kw_only=True)
class Samples(Plugin):
    """Shows greedy completions of held-out rows before and after training, and writes those of each evaluation.

    They are written to ``samples.jsonl`` in the output directory. Training itself is the same, bit for bit, with and
    without this plugin.
    """

    writes: ClassVar[tuple[str, ...]] = ("samples.jsonl",)

    rows: Annotated[int, Field(gt=0, description="number of held-out rows to complete, from the first")] = 5
    max_new_tokens: Annotated[int, Field(gt=0, description="maximum number of tokens to generate for each row")] = 64

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Refuse a run without held-out rows."""
        if config.data.eval is None:
            fix = "set data.eval, for instance data.eval=0.05, or drop the plugin samples"
            yield Problem("there are no held-out rows to complete", "plugin samples", fix, ("plugins", "samples"))

    @hookimpl
    def check_prepared(self, run: PreparedRun) -> Iterator[Verdict]:
        """Held-out rows without anything to complete."""
        from sftkit.api import Verdict, completion_problems

        first = next(iter(run.data.eval))
        for problem in completion_problems(run, self.rows, [first]):
            yield Verdict("samples", "wrong", problem.what, problem.fix, problem.where)

    @hookimpl
    def trainer_callbacks(self, config: RunConfig) -> list[TrainerCallback]:
        """One callback, which acts when training begins and ends, and at each evaluation."""
        from sftkit_plugins.samples.callback import CompleteSamples

        return [CompleteSamples(self.rows, self.max_new_tokens)]
