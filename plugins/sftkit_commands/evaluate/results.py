"""What `sftkit evaluate` finds, as a table, as JSON, and the completions as a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.api import ConfigError, Evaluator, Problem, base_name

if TYPE_CHECKING:
    from sftkit.api import Evaluation, TrainedModel
    from sftkit_commands.evaluate.tasks import Tasks

Load = Callable[..., "TrainedModel"]


@dataclass(frozen=True)
class Results:
    """The metrics of a model, and perhaps of its base.

    Attributes:
        model: the name of the model.
        found: what was found, by ``model`` and ``base``.
        base: the name of the base; empty if it was not evaluated.
        data: counts of each evaluation set; empty for tasks.
        notes: what was done or left out, in words.
    """

    model: str
    found: dict[str, Evaluation]
    base: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        named: dict[str, Any] = {"model": self.model, "metrics": self.found["model"].metrics}
        if self.base:
            named |= {"base": self.base, "base_metrics": self.found["base"].metrics}
        return named | {"data": self.data, "completed": self.completed, "notes": list(self.notes)}

    @property
    def completed(self) -> dict[str, int]:
        """How many rows of each set were completed."""
        return {name: len(made) for name, made in self.found["model"].completions.items()}

    def write_completions(self, path: Path) -> None:
        """Write a line for each completed row: set, row, prompt, reference, and the text of each model."""
        lines = []
        for name, completions in self.found["model"].completions.items():
            for number, made in enumerate(completions):
                line = {"set": name, "row": made.row, "prompt": made.prompt, "reference": made.reference}
                line |= {"text": made.text, "exact": made.exact}
                if self.base:
                    line["base_text"] = self.found["base"].completions[name][number].text
                lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        if not lines:
            what = "nothing was completed, so there is nothing to write"
            raise ConfigError(Problem(what, "--output", "choose --metrics, or rows with a prompt and a completion"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")


def refuse_unused(tasks: bool, rows_options: Mapping[str, Any], task_options: Mapping[str, Any]) -> None:
    """Refuse options that do nothing.

    Raises:
        ConfigError: with each of them.
    """
    unused = [name for name, value in (rows_options if tasks else task_options).items() if value]
    why = "is about held-out rows, and --tasks evaluates tasks" if tasks else "does nothing without --tasks"
    if unused:
        raise ConfigError([Problem(why, name, "remove one of them" if tasks else "add --tasks") for name in unused])


def on_rows(
    load: Load,
    trained: TrainedModel,
    data: str | None,
    settings: Mapping[str, Any],
    assignments: list[str],
    plugins: list[str],
    base: bool,
) -> Results:
    """Evaluate a model, and perhaps its base, on held-out rows.

    Args:
        load: loads a model by its name.
        trained: the model.
        data: where the rows are; None for those of the run.
        settings: of the section ``evaluate``.
        assignments: texts ``key=value``.
        plugins: further plugins.
        base: whether to evaluate the base too.
    """
    name = base_name(trained) if base else ""
    evaluator = Evaluator.of(trained, data, settings=settings, assignments=assignments, plugins=plugins)
    found = {"model": evaluator.evaluate(trained)}
    if base:
        found["base"] = evaluator.evaluate(_base(load, trained, name))
    return Results(trained.name, found, name, evaluator.run.data.summary(), evaluator.notes)


def by_tasks(load: Load, trained: TrainedModel, tasks: Tasks, base: bool) -> Results:
    """Evaluate a model, and perhaps its base, on tasks; arguments as of `on_rows`."""
    name = base_name(trained) if base else ""
    found = {"model": tasks.evaluate(trained)}
    if base:
        found["base"] = tasks.evaluate(_base(load, trained, name))
    return Results(trained.name, found, name)


def _base(load: Load, trained: TrainedModel, name: str) -> TrainedModel:
    """The base, with the tokenizer of the run, and its dtype if no other was chosen."""
    assert trained.manifest is not None
    return load(name, tokenizer=trained.name, dtype=str(trained.model.dtype).removeprefix("torch."))


def show(results: Results, output: Path | None) -> None:
    """Print what was done to the data, and the metrics."""
    from sftkit.api import console, metric_cell, metric_name, note_lines, show_data, show_table, without_notes

    screen = console()
    if results.data:
        show_data(screen, {split: without_notes(counts) for split, counts in results.data.items()})
    done = [f"{name}: {number:,} rows completed" for name, number in results.completed.items()]
    for line in [*note_lines(results.data), *results.notes, *done]:
        screen.print(line, markup=False)
    columns, before = ["metric", "value"], results.found.get("base")
    rows = []
    for name, value in results.found["model"].metrics.items():
        row: list[Any] = [metric_name(name), metric_cell(name, value)]
        if before is not None:
            row.insert(1, metric_cell(name, before.metrics.get(name, "")))
        rows.append(row)
    if before is not None:
        columns[1:] = ["base", "model"]
    show_table(screen, f"Evaluation of {results.model}", columns, rows)
    if output is not None:
        screen.print(f"completions written to {output}", markup=False)
