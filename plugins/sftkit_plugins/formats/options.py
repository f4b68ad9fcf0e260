"""The choices of what is trained, and what the formatters of this plugin share."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from typing_extensions import Self

from sftkit.api import Columns, ConfigError, Formatter, Outcome, Problem
from sftkit_plugins.formats.refusals import check_rows
from sftkit_plugins.formats.weights import COLUMN, weigh

Loss = Literal["all", "completion", "assistant"]


@dataclass(frozen=True, kw_only=True)
class ColumnFormatter(Formatter):
    """A formatter of fixed columns.

    Attributes:
        loss: what is trained.
        loss_is_set: whether the user has set the option ``loss``; if not, the format decides.
        weighted: whether the data has a column ``weight``.
        checked: columns that no row may use, such as images; see `refusals`.
    """

    loss: Loss
    loss_is_set: bool = False
    weighted: bool = False
    checked: tuple[str, ...] = ()

    def defer_loss(self, plugin: str) -> Self:
        """A formatter that trains everything.

        Raises:
            ConfigError: if the user has set the option ``loss``.
        """
        if self.loss_is_set:
            raise two_choices(self.loss, plugin)
        return dataclasses.replace(self, loss="all")

    def __call__(self, rows: Columns) -> list[Outcome]:
        """The documents, with the weights of the rows.

        Raises:
            RowError: for a malformed row, or an invalid weight.
        """
        check_rows(self.checked, rows)
        documents = self.documents(rows)
        return weigh(documents, rows) if self.weighted else documents

    def with_weight(self, columns: Iterable[str]) -> frozenset[str]:
        """Some columns, that of the rows' weights if there is one, and those that are checked."""
        return frozenset(columns) | {*self.checked} | ({COLUMN} if self.weighted else set())

    @property
    @abstractmethod
    def columns_used(self) -> frozenset[str]:
        """The columns of the format, that of the weights, and those that are checked."""

    @abstractmethod
    def documents(self, rows: Columns) -> list[Outcome]:
        """The documents, without the weights of the rows."""


def two_choices(loss: Loss, plugin: str) -> ConfigError:
    """The error for the option ``loss`` together with a plugin that decides itself what to train."""
    what = f"loss={loss} cannot be combined with plugin {plugin}: both decide what to train"
    fix = f"remove the option, or deselect {plugin}"
    return ConfigError(Problem(what, "plugin formats, option loss", fix, ("plugins", "formats", "loss")))
