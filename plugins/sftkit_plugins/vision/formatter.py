"""Documents in which each picture's tokens are written out, with what its batch needs attached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sftkit.api import (
    Columns,
    ConfigError,
    Document,
    DocumentWithAttachment,
    Formatter,
    Problem,
    RowError,
    Skipped,
    Span,
)
from sftkit_plugins.vision.messages import Row
from sftkit_plugins.vision.picture_tokens import PictureTokens
from sftkit_plugins.vision.pictures import PictureError, Reference, size_of

#: Columns that hold pictures, and conversations.
PICTURES = ("images", "image")
CONVERSATIONS = ("messages", "conversations", "prompt", "completion")


@dataclass(frozen=True)
class Pictured(Formatter):
    """The documents of another formatter, with pictures.

    The text is the one that the processor would make: the placeholder that the chat template writes for a picture is
    replaced by what the processor writes for one of its size. No part of it is ever trained.

    Attributes:
        inner: formats the conversations, whose pictures are marks in their text.
        tokens: of pictures.
        column: of the data's pictures, if it has one.
        conversations: the columns that may hold some.
        folder: where relative paths begin.
        verify: whether pictures are read whole, to see that they can be.
    """

    inner: Formatter
    tokens: PictureTokens
    column: str | None
    conversations: tuple[str, ...]
    folder: Path
    verify: bool

    @classmethod
    def of(
        cls,
        inner: Formatter,
        columns: Mapping[str, Any],
        tokens: PictureTokens,
        folder: str,
        verify: bool,
    ) -> Pictured:
        """For data with these columns.

        Raises:
            ConfigError: for two columns of pictures, or a folder that is not there.
        """
        found = [name for name in PICTURES if name in columns]
        if len(found) > 1:
            what = f"the columns {' and '.join(found)} both hold pictures"
            raise ConfigError(Problem(what, "data", "keep one of them"))
        if not Path(folder).is_dir():
            what = f"there is no folder {folder!r}"
            raise ConfigError(Problem(what, "plugin vision, option image_folder", "correct the path"))
        conversations = tuple(name for name in CONVERSATIONS if name in columns)
        return cls(inner, tokens, found[0] if found else None, conversations, Path(folder), verify)

    @property
    def adds_special_tokens(self) -> bool:
        """As the inner formatter's."""
        return self.inner.adds_special_tokens

    @property
    def rendered_special_tokens(self) -> Literal["once", "none"]:
        """As a processor has them."""
        return "once"

    @property
    def attached_type(self) -> Any:
        """The references of a row's pictures."""
        import pyarrow as pa

        return pa.list_(pa.struct([("path", pa.string()), ("bytes", pa.large_binary())]))

    @property
    def uncut_ids(self) -> tuple[int, ...]:
        """The tokens of pictures."""
        return self.tokens.ids

    def __call__(self, rows: Columns) -> list[Document | Skipped]:
        """The documents, each with its pictures attached.

        Raises:
            RowError: for a picture that cannot be had or has no place, and as the inner formatter does.
        """
        length = len(next(iter(rows.values())))
        plain: dict[str, list[Any]] = {name: list(values) for name, values in rows.items()}
        pictures = []
        for index in range(length):
            try:
                row = Row(self._given(rows, index), self.tokens.placeholder, self.folder)
                texts = row.taken([rows[name][index] for name in self.conversations])
            except PictureError as error:
                raise RowError(index, error.what, error.fix) from error
            for name, text in zip(self.conversations, texts, strict=True):
                plain[name][index] = text
            pictures.append(row.pictures)
        documents = self.inner(plain)
        return [
            document if isinstance(document, Skipped) else self._written(document, pictures[index], index)
            for index, document in enumerate(documents)
        ]

    def _given(self, rows: Columns, index: int) -> Sequence[Any]:
        value = None if self.column is None else rows[self.column][index]
        if value is None:
            return ()
        return value if isinstance(value, list | tuple) else (value,)

    def _written(self, document: Document, pictures: list[Reference], index: int) -> DocumentWithAttachment:
        """The document with the tokens of its pictures."""
        places = sum(span.text.count(self.tokens.placeholder) for span in document)
        if places != len(pictures):
            what = f"the text shows {places} pictures ({self.tokens.placeholder}), and the row has {len(pictures)}"
            raise RowError(index, what, "give a part {type: image} in a message for each, or use another template")
        try:
            sizes = tuple(size_of(each, self.verify) for each in pictures)
            written = iter(self.tokens.written(sizes) if pictures else ())
        except PictureError as error:
            raise RowError(index, error.what, error.fix) from error
        spans: list[Span] = []
        for span in document:
            first, *others = span.text.split(self.tokens.placeholder)
            spans.append(span._replace(text=first))
            for piece in others:
                spans += [Span(next(written), False), span._replace(text=piece)]
        return DocumentWithAttachment(spans, pictures, self._counts(spans, pictures))

    def _counts(self, spans: list[Span], pictures: list[Reference]) -> dict[str, int]:
        if not pictures:
            return {"rows without pictures": 1}
        written = sum(span.text.count(token) for span in spans for token in self.tokens.texts)
        return {"pictures": len(pictures), "picture tokens": written}
