"""The outcome of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Best:
    """The best model of a run, by the metric ``evaluate.best`` or ``train.metric_for_best_model``.

    Attributes:
        metric: the name of the metric.
        value: its best value.
        step: the step of the model that has it.
    """

    metric: str
    value: float
    step: int


@dataclass(frozen=True, repr=False)
class RunResult:
    """The outcome of a run.

    Attributes:
        metrics: final values by name; ``NAME_before`` is the value before training.
        directory: where the model, tokenizer, manifest and logs are.
        model: the trained model, with its adapter if there is one.
        tokenizer: its tokenizer, with its chat template.
        processor: the processor that the tokenizer is part of, if there is one.
        status: ``trained``; ``evaluated`` if the run had no steps, so that no model is in the directory; or
            ``finished`` if a resumed run was finished already: then no weights were loaded, and model and tokenizer
            are None.
        best: the best model, if the run compared its models.
        stopped: why the run stopped before its last step; empty if it did not.
    """

    metrics: dict[str, float]
    directory: Path
    model: Any
    tokenizer: Any
    processor: Any = None
    status: Literal["trained", "evaluated", "finished"] = "trained"
    best: Best | None = None
    stopped: str = ""

    @classmethod
    def finished(cls, manifest: Mapping[str, Any], directory: Path) -> RunResult:
        """The outcome of a run that was finished already, from its manifest."""
        best = Best(**manifest["best"]) if manifest.get("best") else None
        found = {"best": best, "stopped": manifest.get("stopped", "")}
        return cls(manifest["metrics"], directory, None, None, status="finished", **found)
