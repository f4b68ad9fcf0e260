"""Values over steps: read from logs, smoothed, and thinned out to be drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

DRAWN = 2000  # points of a series
SMOOTHED = 100  # a smoothed curve averages over about a hundredth of the entries, and at least over `LEAST`
LEAST = 5
Style = Literal["line", "faint", "points", "dashed"]


@dataclass(frozen=True)
class Series:
    """Some values by step.

    Attributes:
        label: its name in the legend.
        points: step and value, by step; every step once.
        style: how it is drawn.
        colour: number of its colour in the palette.
        logged: how many values were logged; more than there are points if they were thinned out.
    """

    label: str
    points: list[tuple[int, float]]
    style: Style = "line"
    colour: int = 0
    logged: int = 0


@dataclass(frozen=True)
class Chart:
    """Series on common axes.

    Attributes:
        name: identifies the chart in the page.
        title: its heading, with the unit.
        meaning: what it shows, in a sentence.
        unit: of the values, for the axis.
        series: the series.
        resumed: steps at which a run was continued.
    """

    name: str
    title: str
    meaning: str
    unit: str
    series: list[Series]
    resumed: list[int] = field(default_factory=list)

    @property
    def thinned(self) -> Series | None:
        """The series with the most logged values, if it was thinned out."""
        most = max(self.series, key=lambda one: one.logged)
        return most if most.logged > len(most.points) else None

    @property
    def description(self) -> str:
        """What a screen reader says of it."""
        lines = []
        for one in self.series:
            values = [value for _, value in one.points]
            lines.append(
                f"{one.label}: {one.logged:,} values between {min(values):.4g} and {max(values):.4g}, "
                f"first {values[0]:.4g}, last {values[-1]:.4g} at step {one.points[-1][0]:,}"
            )
        return f"Line chart of {self.title.lower()} by step. {'. '.join(lines)}."

    @property
    def columns(self) -> tuple[list[int], list[list[float | None]]]:
        """The steps of all series together, and the values of each, None where it has none."""
        steps = sorted({step for one in self.series for step, _ in one.points})
        known = [dict(one.points) for one in self.series]
        return steps, [[values.get(step) for step in steps] for values in known]

    def table(self, most: int) -> list[tuple[int, list[float | None]]]:
        """The rows of its table: steps from the first to the last, at most about ``most``."""
        steps, columns = self.columns
        every = max(-(-len(steps) // most), 1)
        chosen = sorted({*range(0, len(steps), every), len(steps) - 1}) if steps else []
        return [(steps[at], [column[at] for column in columns]) for at in chosen]


def values_of(log: Iterable[dict[str, Any]], name: str, scale: float = 1.0) -> list[tuple[int, float]]:
    """The finite values of a name by step; of a step that was logged twice, the last one."""
    found = {}
    for entry in log:
        value = entry.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[int(entry["step"])] = value * scale
    return sorted(found.items())


def smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """An exponential moving average over about a hundredth of the entries, without a bias to the first value."""
    keep = 1 - 1 / max(len(points) / SMOOTHED, LEAST)
    total = weight = 0.0
    found = []
    for step, value in points:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        found.append((step, total / weight))
    return found


def thin(points: Sequence[tuple[int, float]], most: int = DRAWN) -> list[tuple[int, float]]:
    """At most ``most`` of the points: the first, the last, and the least and the greatest of each of many intervals."""
    if len(points) <= most:
        return list(points)
    inner, number = points[1:-1], (most - 2) // 2
    chosen = {points[0], points[-1]}
    for at in range(number):
        some = inner[at * len(inner) // number : (at + 1) * len(inner) // number]
        chosen |= {min(some, key=lambda point: point[1]), max(some, key=lambda point: point[1])}
    return sorted(chosen)


def series(label: str, points: Sequence[tuple[int, float]], style: Style = "line", colour: int = 0) -> Series:
    """A series of all points, thinned out if they are many."""
    return Series(label, thin(points), style, colour, len(points))
