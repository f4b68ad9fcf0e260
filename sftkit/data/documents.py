"""What lies between a row and its tokens: spans, documents, and the formatter that makes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Real
from operator import itemgetter
from typing import Any, Literal, NamedTuple, TypeAlias, TypeGuard

from typing_extensions import Self

from sftkit.errors import DataError, Problem

Columns: TypeAlias = Mapping[str, Sequence[Any]]
"""A batch of rows as columns: each name maps to one value per row."""


class Span(NamedTuple):
    """A piece of a document's text.

    Attributes:
        text: the text.
        trained: whether the model is trained on it.
        weight: a factor on its loss: 1 is the usual weight, 0.5 is half of it, and 0 does not train the text.
    """

    text: str
    trained: bool
    weight: float = 1.0


Document: TypeAlias = Sequence[Span]


class TokenDocument(Sequence[Span]):
    """A document that is tokenized already, from a formatter whose `Formatter.tokenized` is True. It has no spans.

    Args:
        ids: token ids.
        labels: unshifted labels: the ids of trained tokens, and -100 for the others.
        weight: a factor on the loss of all its tokens.
    """

    def __init__(self, ids: Sequence[int], labels: Sequence[int], weight: float = 1.0) -> None:
        self.ids, self.labels, self.weight = ids, labels, weight

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        """Not possible: raises a DataError, since the text is not known."""
        what = "the data is tokenized already, but a plugin works on text"
        raise DataError(Problem(what, "data", "deselect the plugin, or use data with text"))

    def weighted(self, weight: float) -> TokenDocument:
        """The document with its loss multiplied by a weight."""
        return TokenDocument(self.ids, self.labels, self.weight * weight)


class Skipped(NamedTuple):
    """A row that is not trained on. Rows are counted by reason, so the reason must not contain data of the row.

    Attributes:
        reason: why, in a few words.
        detail: what else `sftkit preview --dropped` shows of this row; it may contain data.
        earlier: of a filter, the number of the earlier row that this one repeats, among the rows it has got, from 0.
    """

    reason: str
    detail: str = ""
    earlier: int | None = None


class RowFilter(ABC):
    """Decides which rows of the training data are kept.

    It gets every row once, in the order of the data, some at a time. How many come at a time may differ, and must not
    matter. It is called in one process.
    """

    @property
    def remembers(self) -> bool:
        """Whether the decision on a row depends on other rows. A stream refuses such a filter."""
        return False

    @property
    def reads_held_out(self) -> bool:
        """Whether `see_held_out` gets the evaluation sets before the first training row comes."""
        return False

    def see_held_out(self, split: str, rows: Columns) -> None:
        """Get some rows of an evaluation set.

        Args:
            split: its name.
            rows: the rows as columns.
        """
        raise NotImplementedError(f"{type(self).__name__} reads the evaluation sets, and has no see_held_out")

    @abstractmethod
    def __call__(self, rows: Columns) -> Sequence[Skipped | None]:
        """The decision on each row of a batch: None keeps it, and `Skipped` drops it.

        Args:
            rows: the rows as columns. A column that the source of the rows does not have is missing.
        """


class RowError(ValueError):
    """A malformed row.

    Args:
        index: position of the row in the batch passed to the formatter, from 0.
        message: what is wrong, with the column or role.
        fix: what the user can do.
    """

    def __init__(self, index: int, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.index, self.message, self.fix = index, message, fix


class DocumentWithAttachment(list[Span]):
    """A document's spans, and a value that its batch needs in addition to the tokens, such as images.

    Args:
        spans: the spans of the document.
        attachment: a value of the formatter's ``attached_type``; the collator gets it as ``example["attached"]``.
        counts: what to count for this document, by name, as in ``{"images": 2}``.
    """

    def __init__(self, spans: Sequence[Span], attachment: Any, counts: Mapping[str, int]) -> None:
        super().__init__(spans)
        self.attachment, self.counts = attachment, counts


class Formatted(NamedTuple):
    """What a row becomes if that is more than one plain document.

    Attributes:
        documents: its documents; usually one.
        notes: what the user should know about the row, such as "column source ignored". Rows are counted by note, so a
            note must not contain data of the row.
    """

    documents: Sequence[Document]
    notes: Sequence[str] = ()


Outcome: TypeAlias = Document | Formatted | Skipped
"""What a formatter makes of a row."""

_LISTS = {list, tuple, DocumentWithAttachment}


def are_documents(outcomes: Sequence[Any]) -> TypeGuard[Sequence[Document]]:
    """Whether all outcomes are documents of text, of the usual types; many are checked at once."""
    return {*map(type, outcomes)} <= _LISTS


def documents_of(outcomes: Iterable[Outcome]) -> Iterator[Document]:
    """The documents of rows, in order."""
    for outcome in outcomes:
        if isinstance(outcome, Formatted):
            yield from outcome.documents
        elif not isinstance(outcome, Skipped):
            yield outcome


def document_text(document: Document) -> str:
    """The text of a document; of one that is tokenized already, its token ids."""
    return f"token ids {list(document.ids)}" if isinstance(document, TokenDocument) else "".join(s[0] for s in document)


def with_documents(outcome: Outcome, change: Callable[[Document], Document | Skipped]) -> Outcome:
    """The outcome of a row with each document changed; a row whose documents are all skipped is skipped."""
    if isinstance(outcome, Skipped):
        return outcome
    if not isinstance(outcome, Formatted):
        return change(outcome)
    changed = [change(document) for document in outcome.documents]
    kept = [document for document in changed if not isinstance(document, Skipped)]
    skipped = [document for document in changed if isinstance(document, Skipped)]
    return skipped[0] if skipped and not kept else outcome._replace(documents=kept)


def find_invalid_text(outcomes: Sequence[Outcome]) -> int | None:
    """The position of the first row whose text is not valid Unicode, such as half of a surrogate pair."""

    def is_valid(some: Sequence[Outcome]) -> bool:
        documents = some if are_documents(some) else documents_of(some)
        spans = chain.from_iterable(each for each in documents if not isinstance(each, TokenDocument))
        texts = map(itemgetter(0), spans)
        try:
            "".join([text for text in texts if not text.isascii()]).encode()
        except UnicodeEncodeError:
            return False
        return True

    if is_valid(outcomes):
        return None
    return next(index for index, outcome in enumerate(outcomes) if not is_valid([outcome]))


WEIGHT_FIX = "use a number of at least 0: 0 does not train, 1 is the usual weight, 0.5 is half of it"


def is_weight(value: Any) -> bool:
    """Whether a value can be a weight: 0, or a number whose sums neither vanish nor overflow in float32."""
    return isinstance(value, Real) and (value == 0 or 1e-30 <= float(value) <= 1e30)


@dataclass(frozen=True)
class Formatter(ABC):
    """Turns rows into spans and does nothing else. The joined text of the spans is the document.

    A formatter holds plain data, so that it can be pickled.
    """

    @property
    def adds_special_tokens(self) -> bool:
        """Whether encoding adds special tokens around the text, as ``data.special_tokens`` says.

        False if the text already contains them, as the text of a chat template does.
        """
        return True

    @property
    def rendered_special_tokens(self) -> Literal["once", "none"]:
        """What encoding adds if ``adds_special_tokens`` is False.

        ``none`` adds nothing. ``once`` does what processors do: it adds the tokenizer's special tokens, but none at
        the start of a text that already begins with them.
        """
        return "none"

    @property
    def tokenized(self) -> bool:
        """Whether each document is a `TokenDocument`. A wrapper that works on text leaves this False."""
        return False

    @property
    def attached_type(self) -> Any:
        """The Arrow type of attachments. With None, documents have none; else each is a `DocumentWithAttachment`."""
        return None

    @property
    def uncut_ids(self) -> tuple[int, ...]:
        """Tokens that truncation must not remove, such as those of an image."""
        return ()

    @property
    def needs_original_rows(self) -> bool:
        """Whether the formatter must get the rows unchanged; a wrapper then leaves all columns alone."""
        return False

    @property
    def columns_used(self) -> frozenset[str] | None:
        """The columns that the documents depend on; the others are reported as ignored. None reports nothing."""
        return None

    def defer_loss(self, plugin: str) -> Self:
        """A formatter of the same texts, for a plugin that decides itself what to train.

        Args:
            plugin: the plugin's name.

        Raises:
            ConfigError: if the user has set what this formatter trains.
        """
        return self

    @abstractmethod
    def __call__(self, rows: Columns) -> list[Outcome]:
        """What each row of the batch becomes: its spans, several documents or notes, or the reason why it is skipped.

        Raises:
            RowError: for a malformed row.
        """
