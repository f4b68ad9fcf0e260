"""Documents with the tokens of each image written out, and the images attached."""

from __future__ import annotations

import functools
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
    Outcome,
    Problem,
    RowError,
    Span,
    with_documents,
)
from sftkit_plugins.vision.image_tokens import ImageTokens
from sftkit_plugins.vision.images import ImageError, Reference, size_of
from sftkit_plugins.vision.messages import Row

#: Columns of images, and of conversations.
IMAGES = ("images", "image")
CONVERSATIONS = ("messages", "conversations", "prompt", "completion")


@dataclass(frozen=True)
class ImageFormatter(Formatter):
    """The documents of another formatter, with images.

    The text is what the processor would make: the placeholder that the chat template writes for an image is replaced by
    the processor's text for an image of that size. None of it is trained.

    Attributes:
        inner: formats the conversations, in whose text marks stand for images.
        tokens: the tokens of images.
        column: the column of images, if there is one.
        conversations: the columns whose messages may hold images.
        folder: the folder to which relative paths refer.
        verify: whether images are decoded, to find broken ones.
    """

    inner: Formatter
    tokens: ImageTokens
    column: str | None
    conversations: tuple[str, ...]
    folder: Path
    verify: bool

    @classmethod
    def of(
        cls,
        inner: Formatter,
        columns: Mapping[str, Any],
        tokens: ImageTokens,
        folder: str,
        verify: bool,
    ) -> ImageFormatter:
        """A formatter for data with these columns.

        Raises:
            ConfigError: if there are two columns of images, or the folder does not exist.
        """
        found = [name for name in IMAGES if name in columns]
        if len(found) > 1:
            what = f"the columns {' and '.join(found)} both hold images"
            raise ConfigError(Problem(what, "data", "keep one of them"))
        if not Path(folder).is_dir():
            what = f"there is no folder {folder!r}"
            raise ConfigError(Problem(what, "plugin vision, option image_folder", "correct the path"))
        conversations = tuple(name for name in CONVERSATIONS if name in columns)
        return cls(inner, tokens, found[0] if found else None, conversations, Path(folder), verify)

    @property
    def adds_special_tokens(self) -> bool:
        """As the inner formatter."""
        return self.inner.adds_special_tokens

    @property
    def rendered_special_tokens(self) -> Literal["once", "none"]:
        """As a processor."""
        return "once"

    @property
    def attached_type(self) -> Any:
        """The type of a row's image references."""
        import pyarrow as pa

        return pa.list_(pa.struct([("path", pa.string()), ("bytes", pa.large_binary())]))

    @property
    def columns_used(self) -> frozenset[str] | None:
        """As the inner formatter, and the column of images."""
        used = self.inner.columns_used
        return used if used is None or self.column is None else used | {self.column}

    @property
    def uncut_ids(self) -> tuple[int, ...]:
        """The tokens of images."""
        return self.tokens.ids

    def __call__(self, rows: Columns) -> list[Outcome]:
        """The documents, each with its images attached.

        Raises:
            RowError: for an image that cannot be used or has no place, and from the inner formatter.
        """
        length = len(next(iter(rows.values())))
        plain: dict[str, list[Any]] = {name: list(values) for name, values in rows.items()}
        images = []
        for index in range(length):
            try:
                row = Row(self._column_images(rows, index), self.tokens.placeholder, self.folder)
                texts = row.extract([rows[name][index] for name in self.conversations])
            except ImageError as error:
                raise RowError(index, error.what, error.fix) from error
            for name, text in zip(self.conversations, texts, strict=True):
                plain[name][index] = text
            images.append(row.images)
        return [
            with_documents(outcome, functools.partial(self._with_tokens, images=images[index], index=index))
            for index, outcome in enumerate(self.inner(plain))
        ]

    def _column_images(self, rows: Columns, index: int) -> Sequence[Any]:
        value = None if self.column is None else rows[self.column][index]
        if value is None:
            return ()
        return value if isinstance(value, list | tuple) else (value,)

    def _with_tokens(self, document: Document, images: list[Reference], index: int) -> DocumentWithAttachment:
        """The document with the tokens of its images."""
        places = sum(span.text.count(self.tokens.placeholder) for span in document)
        if places != len(images):
            what = f"the text has {places} images ({self.tokens.placeholder}), but the row has {len(images)}"
            raise RowError(index, what, "write a part {type: image} in a message for each, or use another template")
        try:
            sizes = tuple(size_of(each, self.verify) for each in images)
            texts = iter(self.tokens.texts_for(sizes) if images else ())
        except ImageError as error:
            raise RowError(index, error.what, error.fix) from error
        spans: list[Span] = []
        for span in document:
            first, *others = span.text.split(self.tokens.placeholder)
            spans.append(span._replace(text=first))
            for piece in others:
                spans += [Span(next(texts), False), span._replace(text=piece)]
        return DocumentWithAttachment(spans, images, self._counts(spans, images))

    def _counts(self, spans: list[Span], images: list[Reference]) -> dict[str, int]:
        if not images:
            return {"rows without images": 1}
        tokens = sum(span.text.count(token) for span in spans for token in self.tokens.texts)
        return {"images": len(images), "image tokens": tokens}
