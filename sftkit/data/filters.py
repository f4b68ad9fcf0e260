"""A filter of rows as the core calls it: what it returns is checked, and errors name its plugin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sftkit.data.documents import Columns, RowFilter, Skipped
from sftkit.errors import HookError, Problem, RunError, SftkitError

if TYPE_CHECKING:
    import numpy as np

HOOK = "filter_rows"
MOST_REASONS = 50  # of one filter: more can only be reasons that contain data of the rows


def kept_of(
    numbers_N: np.ndarray,  # noqa: N803 (a shape)
    columns: dict[str, Any],
    decided: Sequence[Skipped | None],
) -> tuple[np.ndarray, dict[str, Any]]:
    """The rows of a batch that a filter keeps, and their numbers."""
    kept = [at for at, why in enumerate(decided) if why is None]
    if len(kept) == len(numbers_N):
        return numbers_N, columns
    return numbers_N[kept], {name: [values[at] for at in kept] for name, values in columns.items()}


@dataclass
class NamedFilter:
    """A filter, with the plugin that it comes from; what it returns is checked.

    Attributes:
        plugin: the name of the plugin.
        filter: the filter.
        given: how many rows it has got.
    """

    plugin: str
    filter: RowFilter
    given: int = 0
    _reasons: set[str] = field(default_factory=set)

    @property
    def where(self) -> str:
        """The plugin and the hook, for error messages."""
        return f"plugin {self.plugin}, hook {HOOK}"

    def see_held_out(self, split: str, rows: Columns) -> None:
        """Show it some rows of an evaluation set."""
        try:
            self.filter.see_held_out(split, rows)
        except SftkitError:
            raise
        except Exception as error:
            raise HookError(self.plugin, HOOK, error) from error

    def __call__(self, rows: Columns, number: int) -> list[Skipped | None]:
        """The decisions on a batch of ``number`` rows.

        Raises:
            HookError: if the filter fails.
            RunError: if what it returns is no decision on each row, or depends on where batches end.
        """
        decided = self._decided(rows, number)
        if not self.given and not self.filter.remembers and number > 1:
            half = number // 2
            parts = [{name: values[part] for name, values in rows.items()} for part in (slice(half), slice(half, None))]
            if self._decided(parts[0], half) + self._decided(parts[1], number - half) != decided:
                what = "the filter decides otherwise on the same rows in smaller batches"
                fix = "let `remembers` return True if it remembers rows; else decide on each row by itself"
                raise RunError(Problem(what, self.where, fix))
        self._check(decided, number)
        self.given += number
        return decided

    def _decided(self, rows: Columns, number: int) -> list[Skipped | None]:
        try:
            made: Any = self.filter(rows)
        except SftkitError:
            raise
        except Exception as error:
            raise HookError(self.plugin, HOOK, error) from error
        if not isinstance(made, Sequence) or isinstance(made, str | Skipped):
            what = f"the filter returned {type(made).__name__} for {number:,} rows"
            raise RunError(Problem(what, self.where, "return a list with None or Skipped(reason) for each row"))
        if len(made) != number:
            what = f"the filter returned {len(made):,} decisions for {number:,} rows"
            raise RunError(Problem(what, self.where, "return None or Skipped(reason) for each row"))
        return list(made)

    def _check(self, decided: Sequence[Any], number: int) -> None:
        for at, each in enumerate(decided):
            if each is None:
                continue
            if not isinstance(each, Skipped) or not isinstance(each.reason, str) or not each.reason:
                fix = "return None to keep a row, and Skipped(reason) to drop it"
                raise RunError(Problem(f"the filter returned {each!r} for a row", self.where, fix))
            if each.earlier is not None and not 0 <= each.earlier < self.given + at:
                fix = "count the rows that the filter has got, from 0"
                what = f"row {self.given + at} of the filter is said to repeat row {each.earlier}, which is not earlier"
                raise RunError(Problem(what, self.where, fix))
            self._reasons.add(each.reason)
        if len(self._reasons) > MOST_REASONS:
            what = f"the filter gave more than {MOST_REASONS} reasons, such as {sorted(self._reasons)[0]!r}"
            fix = "leave data of the rows out of Skipped.reason, by which rows are counted; it belongs into `detail`"
            raise RunError(Problem(what, self.where, fix))
