"""Columns under other names: those of the option ``columns``, and those written in another case."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import Self

from sftkit.api import Columns, ConfigError, Formatter, Outcome, Problem, RowError, nearest
from sftkit_plugins.formats.pairs import AFTER, BEFORE, PAIRS, REASONING
from sftkit_plugins.formats.side_columns import DOCUMENTS, HISTORY, KWARGS, SYSTEM, TOOLS
from sftkit_plugins.formats.weights import COLUMN

CONVERSATIONS = ("messages", "conversations", "conversation")
#: The names that the formats know.
KNOWN = frozenset(
    {
        *(*CONVERSATIONS, "contents", "data", "segments", "text"),
        *("prompt", "completion", "instruction", "input", "output"),
        *(*SYSTEM, *TOOLS, HISTORY, KWARGS, DOCUMENTS, COLUMN, *BEFORE, *AFTER, *REASONING),
        *(name for pair in PAIRS for name in pair),
    }
)


def check_names(chosen: Mapping[str, str], columns: Mapping[str, Any]) -> None:
    """Checks the option ``columns``.

    Args:
        chosen: the column of the data for each name of a format.
        columns: the columns of the data.

    Raises:
        ConfigError: for a name that no format knows, a column that the data does not have, or one that is named twice.
    """
    problems = []
    for name, column in chosen.items():
        if name not in KNOWN:
            fix = nearest(name, KNOWN) or f"use one of: {', '.join(sorted(KNOWN))}"
            problems.append(_problem(f"no format has a column {name!r}", fix))
        if column not in columns:
            fix = nearest(column, columns) or f"use one of: {', '.join(columns)}"
            problems.append(_problem(f"no such column: {column!r}", fix))
    if len(set(chosen.values())) < len(chosen):
        problems.append(_problem("a column is named twice", "name each column once"))
    if problems:
        raise ConfigError(problems)


def names_of(chosen: Mapping[str, str], columns: Mapping[str, Any]) -> dict[str, str]:
    """The column of the data for each name under which a format gets it.

    A chosen name replaces a column that has this name itself, and so hides it. Names in another case, such as
    ``Question``, stand for the known name, unless a column is written like that too.
    """
    taken = {*chosen.values()}
    names = {name: name for name in columns if name not in taken and name not in chosen}
    for name in [name for name in names if name not in KNOWN]:
        if name.lower() in KNOWN and name.lower() not in (*names, *chosen):
            del names[name]
            names[name.lower()] = name
    return names | dict(chosen)


@dataclass(frozen=True)
class Renamed(Formatter):
    """Another formatter, whose columns have other names in the data.

    Attributes:
        inner: the formatter.
        names: the column of the data for each name under which it gets it.
    """

    inner: Formatter
    names: Mapping[str, str]

    @property
    def adds_special_tokens(self) -> bool:
        """As the inner formatter."""
        return self.inner.adds_special_tokens

    @property
    def rendered_special_tokens(self) -> Literal["once", "none"]:
        """As the inner formatter."""
        return self.inner.rendered_special_tokens

    @property
    def columns_used(self) -> frozenset[str] | None:
        """The columns of the data that the inner formatter uses."""
        used = self.inner.columns_used
        return used if used is None else frozenset(self.names.get(name, name) for name in used)

    def defer_loss(self, plugin: str) -> Self:
        """As the inner formatter.

        Raises:
            ConfigError: if the user has set what it trains.
        """
        return dataclasses.replace(self, inner=self.inner.defer_loss(plugin))

    def __call__(self, rows: Columns) -> list[Outcome]:
        """The documents of the inner formatter.

        Raises:
            RowError: from the inner formatter, with the names of the data.
        """
        try:
            return self.inner({name: rows[column] for name, column in self.names.items() if column in rows})
        except RowError as error:
            message = error.message
            for name, column in self.names.items():
                message = message.replace(f"column {name!r}", f"column {column!r}") if name != column else message
            raise RowError(error.index, message, error.fix) from error


def _problem(what: str, fix: str) -> Problem:
    return Problem(what, "plugin formats, option columns", fix, ("plugins", "formats", "columns"))
