"""The outcome of a run."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
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

    @classmethod
    def of(cls, trainer: Any) -> Best | None:
        """That of a trainer; None if the models of its run were not compared."""
        args, state = trainer.args, trainer.state
        if args.metric_for_best_model is None or state.best_metric is None or state.best_global_step is None:
            return None
        from sftkit.training.best import metric_name

        return cls(metric_name(args), float(state.best_metric), state.best_global_step)


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
        trained: the number of trained ``tokens``, and of each source of the data, if there are several, its ``tokens``
            and its ``loss`` in the last log entry, as ``sources``; empty if no step was trained.
    """

    metrics: dict[str, float]
    directory: Path
    model: Any
    tokenizer: Any
    processor: Any = None
    status: Literal["trained", "evaluated", "finished"] = "trained"
    best: Best | None = None
    stopped: str = ""
    trained: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def finished(cls, manifest: Mapping[str, Any], directory: Path) -> RunResult:
        """The outcome of a run that was finished already, from its manifest."""
        best = Best(**manifest["best"]) if manifest.get("best") else None
        found = {"best": best, "stopped": manifest.get("stopped", ""), "trained": manifest.get("trained", {})}
        return cls(manifest["metrics"], directory, None, None, status="finished", **found)

    def __repr__(self) -> str:
        ends = f", stopped: {self.stopped}" if self.stopped else ""
        lines = [f"RunResult: {self.status}{ends}, in {self.directory}"]
        if self.best is not None:
            lines.append(f"  best: {self.best.metric} {_number(self.best.value)} at step {self.best.step}")
        for name, before, after in self._rows():
            lines.append(f"  {name}: {f'{before} -> ' if before else ''}{after}")
        for name, of in self.trained.get("sources", {}).items():
            loss = "" if of["loss"] is None else f", loss {_number(of['loss'])}"
            lines.append(f"  source {name}: {of['tokens']:,} trained tokens{loss}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in self._rows())
        head = "<tr><th>metric</th><th>before</th><th>after</th></tr>"
        return f"<p>{html.escape(repr(self).splitlines()[0])}</p><table>{head}{cells}</table>"

    def _rows(self) -> list[tuple[str, str, str]]:
        """Name, value before training and value, of each metric."""
        names = [name for name in self.metrics if not name.endswith("_before")]
        known = {name: _number(value) for name, value in self.metrics.items()}
        return [(name, known.get(f"{name}_before", ""), known[name]) for name in names]


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
