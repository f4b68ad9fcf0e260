"""Formatters as a run makes them, for the tests of data formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from datasets import Dataset

from sftkit.api import Formatted, Formatter, Outcome
from sftkit.plugin.select import Choice, select
from sftkit.testing import tiny_config, tiny_tokenizer


@dataclass(frozen=True)
class Rows:
    """Some rows, and the formatter that plugin formats makes for them."""

    formatter: Formatter
    columns: dict[str, list[Any]]

    @property
    def outcomes(self) -> list[Outcome]:
        """What the rows become."""
        return self.formatter(self.columns)

    @property
    def conversations(self) -> list[Any]:
        """The conversations of the rows, before they are rendered."""
        inner: Any = getattr(self.formatter, "inner", self.formatter)
        names = getattr(self.formatter, "names", {name: name for name in self.columns})
        columns = {name: self.columns[column] for name, column in names.items()}
        return [inner.reader(columns, index) for index in range(len(next(iter(columns.values()))))]

    @property
    def ignored(self) -> set[str]:
        """The columns that are reported as ignored."""
        used = self.formatter.columns_used
        assert used is not None
        return set(self.columns) - used


@pytest.fixture
def read() -> Callable[..., Rows]:
    """Reads rows as a run does: ``read(rows, template, data=..., **options)``; ``data`` is the run's section."""

    def read(rows: Any, template: Any = None, data: dict[str, Any] | None = None, **options: Any) -> Rows:
        dataset = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
        plugins, problems = select([Choice("formats", options)])
        assert plugins is not None, problems
        formatter = plugins.hook.make_formatter(
            columns=dataset.features,
            tokenizer=tiny_tokenizer(chat_template=template),
            processor=None,
            config=tiny_config(data=data or {}),
        )
        return Rows(formatter, {name: list(values) for name, values in dataset[:].items()})

    return read


@pytest.fixture
def marked() -> Callable[[Any], str]:
    """An outcome's text with its trained parts in brackets."""

    def marked(outcome: Any) -> str:
        (document,) = outcome.documents if isinstance(outcome, Formatted) else [outcome]
        text = "".join(f"⟦{span.text}⟧" if span.trained and span.text else span.text for span in document)
        return text.replace("⟧⟦", "")

    return marked
