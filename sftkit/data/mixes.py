"""Which rows of a source are used: mixtures of several sources, and rows held out for evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from sftkit.errors import DataError, Problem

if TYPE_CHECKING:
    import numpy as np

    from sftkit.data.sources import DataSource


def mix(weighted: list[tuple[DataSource, float]], until: Literal["first", "all"], seed: int) -> list[DataSource]:
    """The sources, each with a number of rows in proportion to its weight.

    Args:
        weighted: the sources and their weights.
        until: ``first`` stops when the first source is used up, so that no row repeats. ``all`` stops when every row
            has been used, so that rows of other sources repeat.
        seed: seed of the choice of rows.
    """

    @functools.cache
    def size() -> float:
        totals = [number_of_rows(source) / weight for source, weight in weighted]
        return min(totals) if until == "first" else max(totals)

    def picker(inner: Callable[[int], np.ndarray] | None, weight: float) -> Callable[[int], np.ndarray]:
        def pick(total: int) -> np.ndarray:
            import numpy as np

            rows = np.arange(total) if inner is None else inner(total)
            number = len(rows)
            times, rest = divmod(max(round(size() * weight), 1), number)
            some = np.random.default_rng(seed).permutation(number)[:rest]
            return rows[np.sort(np.concatenate([np.tile(np.arange(number), times), some]))]

        return pick

    @functools.cache
    def together() -> dict[str, Any]:
        return {"mix": [(source.identity, weight) for source, weight in weighted], "until": until, "seed": seed}

    def identifier(source: DataSource) -> Callable[[], Any]:
        return lambda: {"of": source.identity, **together()}

    return [
        dataclasses.replace(source, identify=identifier(source), pick=picker(source.pick, weight))
        for source, weight in weighted
    ]


def number_of_rows(source: DataSource) -> int:
    """How many rows of a source are used."""
    number = len(source.load().rows)
    return number if source.pick is None else len(source.pick(number))


def hold_out(sources: list[DataSource], fraction: float, seed: int) -> tuple[list[DataSource], list[DataSource]]:
    """The sources without a fraction of their rows, and with only these rows; the rows keep their order.

    Args:
        sources: the sources to split, each by itself.
        fraction: the fraction of rows to hold out, at least one row and not all of them.
        seed: seed of the choice of rows.
    """
    train = [_part(source, fraction, seed, held_out=False) for source in sources]
    return train, [_part(source, fraction, seed, held_out=True) for source in sources]


def _part(source: DataSource, fraction: float, seed: int, held_out: bool) -> DataSource:
    inner = source.pick

    def pick(number: int) -> np.ndarray:
        import numpy as np

        rows = np.arange(number) if inner is None else inner(number)
        if len(rows) < 2:
            what = f"no rows can be held out of {source.where}: it has only {len(rows)}"
            raise DataError(Problem(what, "data.eval", "use more rows, or name a file as data.eval"))
        out = np.zeros(len(rows), bool)
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        out[np.random.default_rng(seed).permutation(len(rows))[:count]] = True
        return rows[out if held_out else ~out]

    def identify() -> dict[str, Any]:
        return {"of": source.identity, "fraction": fraction, "seed": seed, "held out": held_out}

    return dataclasses.replace(source, identify=identify, pick=pick, filtered=() if held_out else source.filtered)
