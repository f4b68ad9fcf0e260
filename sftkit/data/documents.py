"""What lies between a row and its tokens: spans, documents, and the formatter that makes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, NamedTuple, TypeAlias

from typing_extensions import Self

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


class Skipped(NamedTuple):
    """A row that cannot be trained on. Rows are counted by reason, so the reason must not contain data of the row."""

    reason: str


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


Document: TypeAlias = Sequence[Span]


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

    def defer_loss(self, plugin: str) -> Self:
        """A formatter of the same texts, for a plugin that decides itself what to train.

        Args:
            plugin: the plugin's name.

        Raises:
            ConfigError: if the user has set what this formatter trains.
        """
        return self

    @abstractmethod
    def __call__(self, rows: Columns) -> list[Document | Skipped]:
        """The spans of each row of the batch, or the reason why a row is skipped.

        Raises:
            RowError: for a malformed row.
        """
