"""What a formatter made of rows: checked, and its documents with the numbers of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from sftkit.data.counts import Counts
from sftkit.data.documents import (
    WEIGHT_FIX,
    Columns,
    Document,
    DocumentWithAttachment,
    Formatted,
    Formatter,
    Outcome,
    Skipped,
    Span,
    TokenDocument,
    are_documents,
    documents_of,
    is_weight,
)
from sftkit.data.encode import NumberedDocuments
from sftkit.data.problems import DROPPED

if TYPE_CHECKING:
    from sftkit.data.columns import Examples

#: Rows of a batch below which equal documents may be a coincidence.
FEW = 4
FIX_TYPE = "return a list of Span objects for each row, Formatted for several documents, or Skipped with a reason"
FIX_SAME = "use the values of each row; if the rows differ elsewhere, name the columns that are used in columns_used"
FIX_STATE = "make the document of a row from that row alone, without randomness"


class Wrong(NamedTuple):
    """What is wrong with the outcomes of a batch.

    Attributes:
        what: the mistake.
        fix: how it is corrected.
        row: the position of the row in the batch; None if it is about all of them.
    """

    what: str
    fix: str
    row: int | None = None


def wrong_outcomes(outcomes: Any, rows: int, formatter: Formatter) -> Wrong | None:
    """What is wrong with the number and the types of outcomes; None if nothing is.

    Args:
        outcomes: what the formatter returned.
        rows: the number of rows that it was given.
        formatter: the formatter.
    """
    if not isinstance(outcomes, Sequence) or isinstance(outcomes, str):
        return Wrong(
            f"the formatter returns an object of type {type(outcomes).__name__}", "return one outcome for each row"
        )
    if len(outcomes) != rows:
        what = f"the formatter returns {len(outcomes):,} outcomes for {rows:,} rows"
        return Wrong(what, "return one outcome for each row; Skipped with a reason for a row without documents")
    if _of_usual_types(outcomes, formatter.tokenized):
        return None
    for row, outcome in enumerate(outcomes):
        if isinstance(outcome, Skipped):
            continue
        documents = outcome.documents if isinstance(outcome, Formatted) else [outcome]
        for document in documents:
            if what := _wrong_document(document, formatter.tokenized):
                return Wrong(f"the formatter makes {what} of a row", FIX_TYPE, row)
            for span in () if formatter.tokenized else document:
                if span[2] != 1 and not is_weight(span[2]):
                    return Wrong(f"a span has the weight {span[2]!r}", WEIGHT_FIX, row)
    return None


def _of_usual_types(outcomes: Sequence[Any], tokenized: bool) -> bool:
    """Whether all outcomes are right, which their types show without a look at each."""
    documents = outcomes if are_documents(outcomes) else list(documents_of(outcomes))
    if tokenized:
        return {*map(type, documents)} <= {TokenDocument}
    if not are_documents(documents):
        return False
    spans = list(chain.from_iterable(documents))
    if not ({*map(type, spans)} <= {Span, tuple} and {*map(len, spans)} <= {3}):
        return False
    texts, _, weights = zip(*spans, strict=True) if spans else ((), (), ())
    if not ({*map(type, texts)} <= {str} and {*map(type, weights)} <= {float, int}):
        return False
    return weights.count(1) == len(weights) or all(map(is_weight, {*weights}))


def _wrong_document(document: Any, tokenized: bool) -> str:
    if isinstance(document, TokenDocument):
        return "" if tokenized else "a TokenDocument, and its attribute `tokenized` is False,"
    if tokenized:
        return f"an object of type {type(document).__name__}, and its attribute `tokenized` is True,"
    if document is None:
        return "None"
    if not isinstance(document, Sequence) or isinstance(document, str):
        return f"an object of type {type(document).__name__}"
    for span in document:
        if not isinstance(span, tuple) or len(span) != 3 or not isinstance(span[0], str):
            return f"a document with {span!r}"
    return ""


def wrong_state(outcomes: Sequence[Outcome], rows: Columns, formatter: Formatter) -> Wrong | None:
    """Whether outcomes depend on other rows: all are the same document, or the last row alone becomes another one.

    Functions of the user, which get the rows as they are, may be random.

    Args:
        outcomes: of the rows.
        rows: the rows.
        formatter: the formatter.
    """
    last = len(outcomes) - 1
    if last < 1 or formatter.needs_original_rows:
        return None
    used = formatter.columns_used
    columns = {name: values for name, values in rows.items() if used is None or name in used}
    differ = any(value != values[0] for values in columns.values() for value in values)
    if last + 1 >= FEW and differ and _only_text(outcomes[0]) and all(_same(outcomes[0], each) for each in outcomes):
        return Wrong(f"the formatter makes the same document of {last + 1:,} different rows", FIX_SAME)
    alone = formatter({name: values[last:] for name, values in rows.items()})
    if len(alone) != 1 or not _same(alone[0], outcomes[last]):
        return Wrong("the formatter makes another document of a row when it is given alone", FIX_STATE, last)
    return None


def _only_text(outcome: Outcome) -> bool:
    """Whether a row has text or tokens, and nothing attached in which it may differ from others."""
    documents = list(documents_of([outcome]))
    if any(isinstance(document, DocumentWithAttachment) for document in documents):
        return False
    return any(isinstance(each, TokenDocument) or any(span[0] for span in each) for each in documents)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, TokenDocument) and isinstance(other, TokenDocument):
        return list(one.ids) == list(other.ids) and list(one.labels) == list(other.labels)
    if isinstance(one, Formatted) and isinstance(other, Formatted):
        same_number = len(one.documents) == len(other.documents)
        return same_number and all(map(_same, one.documents, other.documents))
    if isinstance(one, Skipped) or isinstance(other, Skipped):
        return type(one) is type(other)
    return type(one) is type(other) and list(one) == list(other)


def wrong_ids(examples: Examples, tokens: int) -> Wrong | None:
    """Token ids of tokenized documents that the tokenizer does not have.

    Args:
        examples: the documents as examples.
        tokens: the number of tokens of the tokenizer.
    """
    for name, values_S in (("token id", examples.ids_S), ("label", examples.labels_S)):  # noqa: N806 (a shape)
        if len(values_S) and (worst := int(values_S.max())) >= tokens:
            what = f"a document has the {name} {worst:,}, and the tokenizer has {tokens:,} tokens"
            return Wrong(what, "tokenize the data with the tokenizer of the run")
    return None


class Kept(NamedTuple):
    """The documents of rows, and the rows without one.

    Attributes:
        documents: each with the number of its row.
        dropped: the position of each row that was dropped, why, as it is counted, and what is particular to the row.
    """

    documents: NumberedDocuments
    dropped: list[tuple[int, str, str]]


def kept_documents(numbers: Sequence[int], outcomes: Sequence[Outcome], split: str, counts: Counts) -> Kept:
    """The documents of rows; dropped rows and notes are counted."""
    if are_documents(outcomes):
        return Kept(NumberedDocuments(numbers, list(outcomes)), [])
    kept: list[tuple[int, Document]] = []
    dropped: list[tuple[int, str, str]] = []
    for at, (number, made) in enumerate(zip(numbers, outcomes, strict=True)):
        if isinstance(made, Skipped):
            counts.add(split, what := f"{DROPPED}{made.reason}")
            dropped.append((at, what, made.detail))
        elif isinstance(made, Formatted):
            kept += [(number, document) for document in made.documents]
            for note in made.notes:
                counts.note(split, note)
        else:
            kept.append((number, made))
    return Kept(NumberedDocuments([number for number, _ in kept], [document for _, document in kept]), dropped)
