"""The charts of a report: which values they show, for one run or for several."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sftkit.api import metric_name
from sftkit_commands.report.reading import TRAINED, Run
from sftkit_commands.report.series import Chart, Series, Style, series, smooth, values_of

LINE: Style = "line"
POINTS: Style = "points"
#: Logged values that are charts of their own, or no measure of the model.
NO_MEASURES = re.compile(
    r"^(step|time|epoch|trained_(tokens|weight)(_.*)?|total_flos|train_\w+|saves|save_share|skipped_steps|.*(_runtime|_per_second|_time|seconds)"
    r"|loss|learning_rate|grad_norm|memory)$"
)


@dataclass(frozen=True)
class Values:
    """Logged values of one kind.

    Attributes:
        key: their name in the log.
        name: of the chart in the page.
        title: the heading.
        meaning: what they are, in a sentence.
        unit: for the axis.
        scale: factor from what is logged to the unit.
    """

    key: str
    name: str
    title: str
    meaning: str
    unit: str
    scale: float = 1.0


PLAIN = (
    Values("learning_rate", "learning_rate", "Learning rate", "The learning rate of the optimizer.", "learning rate"),
    Values("grad_norm", "grad_norm", "Gradient norm", "The norm of the gradient, before it is clipped.", "norm"),
    Values(
        "tokens_per_second",
        "tokens_per_second",
        "Speed",
        "Tokens per second without padding, over all processes; evaluations and saves are not counted.",
        "tokens/s",
    ),
    Values(
        "memory",
        "memory",
        "Peak memory",
        "The most memory so far of any process: of its device, or of the process on a CPU.",
        "GB",
        1e-9,
    ),
)


def charts_of(runs: Sequence[Run]) -> list[Chart]:
    """The charts of one run, or the same charts with a series for each of several runs; none without values."""
    chosen = [*(_compared(runs) if len(runs) > 1 else _losses(runs[0])), *_by_source(runs)]
    chosen += [_over_runs(runs, values) for values in PLAIN]
    chosen += _others(runs)
    # a name identifies the chart in the page, where it has no spaces or quotes
    return [replace(chart, name=re.sub(r"[^\w-]+", "_", chart.name)) for chart in chosen if chart.series]


def _losses(run: Run) -> Iterator[Chart]:
    loss = values_of(run.log, "loss")
    lines = [series("training", loss, "faint", 0), series("training, smoothed", smooth(loss), "line", 0)]
    for number, name in enumerate(_eval_losses([run])):
        lines.append(series(f"evaluation{_set_of(name)}", values_of(run.log, name), "points", number + 1))
    meaning = (
        "The mean loss of the trained tokens. Training: since the last entry. Smoothed: a moving average. "
        "Evaluation: over the whole set."
    )
    yield Chart("loss", "Loss", meaning, "loss", _filled(lines), run.resumed)


def _compared(runs: Sequence[Run]) -> Iterator[Chart]:
    lines = []
    for number, run in enumerate(runs):
        loss = values_of(run.log, "loss")
        lines += [
            series(f"{run.name}, as logged", loss, "faint", number),
            series(run.name, smooth(loss), "line", number),
        ]
    meaning = "The mean loss of the trained tokens since the last entry; the strong lines are moving averages."
    yield Chart("loss", "Training loss", meaning, "loss", _filled(lines))
    for name in _eval_losses(runs):
        meaning = "The mean loss of the trained tokens of the set."
        yield Chart(name, f"Evaluation loss{_set_of(name)}", meaning, "loss", _lines(runs, name, "points"))


def _by_source(runs: Sequence[Run]) -> Iterator[Chart]:
    for prefix in _source_prefixes(runs):
        evaluated = prefix != "loss_"
        names = [name for name in _names(runs) if name.startswith(prefix)]
        lines: list[Series] = []
        for number, run in enumerate(runs):
            for at, name in enumerate(names):
                source, points = name.removeprefix(prefix), values_of(run.log, name)
                colour = at if len(runs) == 1 else number * len(names) + at
                label = source if len(runs) == 1 else f"{run.name}: {source}"
                lines.append(series(label, points if evaluated else smooth(points), "line", colour))
        kind = f"Evaluation loss{_set_of(prefix[:-1])}" if evaluated else "Training loss"
        meaning = "in the evaluation set" if evaluated else "since the last entry, as a moving average"
        meaning = f"The mean loss of the trained tokens of each source {meaning}."
        yield Chart(f"{prefix}by_source", f"{kind} by data source", meaning, "loss", _filled(lines), _resumed(runs))
    lines = [
        series(name if len(runs) == 1 else f"{run.name}: {name}", values_of(run.log, TRAINED + name), "line", colour)
        for colour, (run, name) in enumerate((run, name) for run in runs for name in run.trained["sources"])
    ]
    title, meaning = (
        "Trained tokens by data source",
        "The trained tokens of each source so far; they add up to all of them.",
    )
    yield Chart("trained_tokens_by_source", title, meaning, "tokens", _filled(lines), _resumed(runs))


def _source_prefixes(runs: Sequence[Run]) -> list[str]:
    """How the names of the losses of sources begin."""
    return ["loss_", *(f"{name}_" for name in _eval_losses(runs))]


def _set_of(name: str) -> str:
    """The name of the evaluation set of a loss, after a space; empty if there is only one set."""
    return "" if name == "eval_loss" else f" of {name.removeprefix('eval_').removesuffix('_loss')}"


def _over_runs(runs: Sequence[Run], values: Values) -> Chart:
    lines = _lines(runs, values.key, "line", values.scale)
    return Chart(values.name, values.title, values.meaning, values.unit, lines, _resumed(runs))


def _others(runs: Sequence[Run]) -> Iterator[Chart]:
    """A chart for each other measure, with its values in training and in evaluations."""
    losses, sources = {*_eval_losses(runs)}, tuple(_source_prefixes(runs))
    measures: dict[str, list[str]] = {}
    for name in _names(runs):
        if name not in losses and not name.startswith(sources) and not NO_MEASURES.match(name):
            measures.setdefault(name.removeprefix("eval_"), []).append(name)
    for measure, names in sorted(measures.items()):
        lines: list[Series] = []
        for name in sorted(names, key=lambda name: name.startswith("eval_")):
            evaluated = name.startswith("eval_")
            kind, style = ("evaluation", POINTS) if evaluated else ("training", LINE)
            for number, run in enumerate(runs):
                colour = int(evaluated) if len(runs) == 1 else number
                lines.append(series(_label(run, runs, kind), values_of(run.log, name), style, colour))
        title, meaning = metric_name(measure).capitalize(), f"Logged as {' and '.join(names)}."
        yield Chart(measure, title, meaning, "", _filled(lines), _resumed(runs))


def _label(run: Run, runs: Sequence[Run], kind: str) -> str:
    return kind if len(runs) == 1 else f"{run.name}, {kind}"


def _lines(runs: Sequence[Run], key: str, style: Any, scale: float = 1.0) -> list[Series]:
    named = [
        series(run.name if len(runs) > 1 else metric_name(key), values_of(run.log, key, scale), style, number)
        for number, run in enumerate(runs)
    ]
    return _filled(named)


def _filled(lines: Sequence[Series]) -> list[Series]:
    return [one for one in lines if one.points]


def _resumed(runs: Sequence[Run]) -> list[int]:
    return runs[0].resumed if len(runs) == 1 else []


def _names(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for entry in run.log for name in entry))


def _eval_losses(runs: Sequence[Run]) -> list[str]:
    """The losses of evaluation sets, and not those of their sources."""
    sets = {split for run in runs for split in run.manifest["data"] if split != "train"}
    return [name for name in _names(runs) if name == "eval_loss" or name in {f"eval_{one}_loss" for one in sets}]
