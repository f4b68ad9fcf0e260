"""Formatters make one outcome of each row, always the same, from the row alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sftkit.data.documents import (
    Formatted,
    Formatter,
    Skipped,
    TokenDocument,
    documents_of,
    find_invalid_text,
    is_weight,
)
from sftkit.testing.conformance.checks import CheckFailed, check, require, skip
from sftkit.testing.conformance.pickling import in_worker, pickled

if TYPE_CHECKING:
    from sftkit.testing.conformance.workbench import Workbench

STATELESS = "compute the outcome of a row from the row alone, and keep nothing between rows"


def _formatters(bench: Workbench) -> Iterator[tuple[str, Any, dict[str, list[Any]]]]:
    """For each format that the plugin reads: its name, a fresh formatter, and rows as columns.

    Raises:
        CheckSkipped: if it reads none of the kit's formats.
    """
    if not bench.forms:
        skip("it reads none of the kit's rows; give some of its format, by rows=[...] or --rows FILE")
    for form, rows in bench.forms.items():
        formatter = bench.formatter(rows)
        if formatter is None and bench.rows is not None:
            what = f"it makes no formatter for rows with the columns {', '.join(rows[0])}"
            raise CheckFailed(what, "return one for these columns, or check other rows")
        if formatter is not None:
            yield form, formatter, _columns(rows)


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    from datasets import Dataset

    return {name: list(values) for name, values in Dataset.from_list([dict(row) for row in rows])[:].items()}


def _row(columns: Mapping[str, list[Any]], number: int) -> dict[str, list[Any]]:
    return {name: [values[number]] for name, values in columns.items()}


def _size(columns: Mapping[str, list[Any]]) -> int:
    return len(next(iter(columns.values())))


@check("make_formatter")
def makes_a_formatter(bench: Workbench, hook: str) -> None:
    """It returns a Formatter for rows that it reads"""
    for form, formatter, _ in _formatters(bench):
        what = f"{form}: it returns {type(formatter).__name__}, which is no Formatter"
        require(isinstance(formatter, Formatter), what, "derive the class from sftkit.api.Formatter")


@check("make_formatter")
def one_outcome_a_row(bench: Workbench, hook: str) -> None:
    """Each row becomes documents, or a reason why it is skipped"""
    for form, formatter, columns in _formatters(bench):
        outcomes = formatter(copy.deepcopy(columns))
        what = f"{form}: it returns an object of type {type(outcomes).__name__}"
        require(isinstance(outcomes, Sequence), what, "return a list with one outcome for each row, in their order")
        what = f"{form}: {_size(columns)} rows become {len(outcomes)} outcomes"
        require(len(outcomes) == _size(columns), what, "return one outcome for each row, in their order")
        for number, outcome in enumerate(outcomes, 1):
            _check_outcome(f"{form}: row {number}", outcome, formatter.tokenized)
        invalid = find_invalid_text(outcomes)
        require(
            invalid is None, f"{form}: the text of row {(invalid or 0) + 1} is not valid Unicode", "repair the text"
        )


def _check_outcome(place: str, outcome: Any, tokenized: bool) -> None:
    fix = "return a list of Span, a Formatted, or a Skipped with a reason"
    if isinstance(outcome, Skipped):
        require(isinstance(outcome.reason, str) and outcome.reason, f"{place} is skipped without a reason", fix)
        return
    documents = outcome.documents if isinstance(outcome, Formatted) else [outcome]
    require(documents, f"{place} has no document and no reason", "return Skipped with the reason")
    for document in documents:
        if tokenized:
            right = isinstance(document, TokenDocument) and len(document.ids) == len(document.labels) > 0
            require(right, f"{place} is no TokenDocument with a label for each id", "make one of ids and labels")
            continue
        require(isinstance(document, Sequence) and not isinstance(document, str), f"{place} is {document!r:.60}", fix)
        require(document, f"{place} is an empty document", "return Skipped with the reason")
        for span in document:
            right = isinstance(span, tuple) and len(span) == 3 and isinstance(span[0], str)
            require(right, f"{place} has the span {span!r:.80}, whose text is no text", fix)
            what = f"{place}: the weight of a span is {span[2]!r}"
            require(is_weight(span[2]), what, "give a number of at least 0")
        require("".join(span[0] for span in document), f"{place} has no text", "return Skipped with the reason")


@check("make_formatter")
def something_is_trained(bench: Workbench, hook: str) -> None:
    """Some text of the rows is trained"""
    skipped = []
    for form, formatter, columns in _formatters(bench):
        outcomes = _outcomes(formatter, columns)
        documents = list(documents_of(outcomes))
        if not documents:
            skipped.append(f"{form} ({outcomes[0].reason})")
            continue
        trained = any(_trains(document) for document in documents)
        require(trained, f"{form}: no span is trained", "set trained=True for what the model is to learn")
    what = f"every row is skipped: {', '.join(skipped)}"
    require(len(skipped) < len(bench.forms), what, "check rows that the plugin reads, or skip fewer")


def _trains(document: Any) -> bool:
    if isinstance(document, TokenDocument):
        return any(label >= 0 for label in document.labels)
    return any(span[1] and span[0].strip() and span[2] > 0 for span in document)


@check("make_formatter")
def deterministic(bench: Workbench, hook: str) -> None:
    """The same rows become the same documents"""
    for form, formatter, columns in _formatters(bench):
        first, second = (plain(_outcomes(formatter, columns)) for _ in range(2))
        fix = "draw nothing at random, and use no time or counter; or seed it with the row"
        require(first == second, f"{form}: the second call makes other documents of the same rows", fix)


@check("make_formatter")
def no_state_between_rows(bench: Workbench, hook: str) -> None:
    """A row alone becomes what it becomes among others"""
    for form, formatter, columns in _formatters(bench):
        together = plain(_outcomes(formatter, columns))
        for number in reversed(range(_size(columns))):
            (alone,) = plain(bench.formatter(bench.forms[form])(copy.deepcopy(_row(columns, number))))
            what = f"{form}: row {number + 1} becomes something else when it is formatted alone"
            require(alone == together[number], what, STATELESS)


@check("make_formatter")
def rows_stay(bench: Workbench, hook: str) -> None:
    """The rows that it gets are not changed"""
    for form, formatter, columns in _formatters(bench):
        given = copy.deepcopy(columns)
        formatter(given)
        changed = [name for name in columns if given.get(name) != columns[name]]
        require(not changed, f"{form}: it changes the column {', '.join(changed)}", "copy what you change")


@check("make_formatter")
def columns_used_are_used(bench: Workbench, hook: str) -> None:
    """The columns that it does not use can be missing"""
    for form, formatter, columns in _formatters(bench):
        used = formatter.columns_used
        if used is None:
            continue
        expected = plain(_outcomes(formatter, columns))
        kept = {name: values for name, values in copy.deepcopy(columns).items() if name in used}
        require(kept, f"{form}: columns_used names none of the columns {', '.join(columns)}", "name those it reads")
        try:
            found = plain(formatter(kept))
        except KeyError as error:
            raise CheckFailed(f"{form}: it reads the column {error}", "name it in columns_used") from error
        require(found == expected, f"{form}: documents depend on columns that are not in columns_used", "name them")


@check("make_formatter")
def formats_elsewhere(bench: Workbench, hook: str) -> None:
    """It can be pickled, and works in the workers of the preparation"""
    for number, (form, formatter, columns) in enumerate(_formatters(bench)):
        expected = plain(_outcomes(formatter, columns))
        again = pickled(formatter, f"{form}: the formatter")
        fix = "keep everything that it needs in its fields"
        require(plain(again(copy.deepcopy(columns))) == expected, f"{form}: the pickled formatter makes others", fix)
        if number == 0:
            outcomes = in_worker(_formatted, formatter, copy.deepcopy(columns))
            require(plain(outcomes) == expected, f"{form}: it makes other documents in a worker", fix)


def _formatted(formatter: Callable[[Any], Any], columns: dict[str, list[Any]]) -> Any:
    return formatter(columns)


def _outcomes(formatter: Any, columns: Mapping[str, list[Any]]) -> Any:
    """The outcome of each row.

    Raises:
        CheckSkipped: if they are no outcomes, or too few or too many, which another check reports.
    """
    outcomes = formatter(copy.deepcopy(columns))
    wrong = not isinstance(outcomes, Sequence) or len(outcomes) != _size(columns)
    if wrong or any(outcome is None for outcome in outcomes):
        skip("its outcomes are not one for each row")
    return outcomes


def plain(outcomes: Any) -> list[Any]:
    """Outcomes as values that can be compared."""
    return [_plain(outcome) for outcome in outcomes]


def _plain(outcome: Any) -> Any:
    if isinstance(outcome, Skipped):
        return ("skipped", outcome.reason)
    notes = list(outcome.notes) if isinstance(outcome, Formatted) else []
    documents = outcome.documents if isinstance(outcome, Formatted) else [outcome]
    return ([_plain_document(document) for document in documents], notes)


def _plain_document(document: Any) -> Any:
    if isinstance(document, TokenDocument):
        return (list(document.ids), list(document.labels), document.weight)
    return ([tuple(span) for span in document], getattr(document, "attachment", None))
