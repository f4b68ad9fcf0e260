"""Takes the images out of conversations, and leaves a mark in the text for each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sftkit_plugins.vision.images import KEYS, ImageError, Reference, reference
from sftkit_plugins.vision.template import MARK

#: What stands for an image in plain text, as in LLaVA's data.
PLAIN = "<image>"
USERS = ("user", "human")
#: Keys of a message that train it.
TRAINED = ("train", "training", "loss", "weight", "loss_scale")


@dataclass
class Row:
    """The images of one row, in the order in which its conversation shows them.

    Args:
        column: the images of the row's own column.
        placeholder: the processor's token, which text must not contain.
        folder: the folder to which relative paths refer.
    """

    column: Sequence[Any]
    placeholder: str
    folder: Path
    images: list[Reference] = field(default_factory=list)
    _shown: set[int] = field(default_factory=set)

    def extract(self, conversations: Sequence[Any]) -> list[Any]:
        """Collects the images, and returns the conversations with text alone.

        Args:
            conversations: lists of messages; other values are returned unchanged.

        Raises:
            ImageError: for an image that cannot be used, or if images and their places do not match.
        """
        texts = [
            [self._message(message) for message in each] if isinstance(each, list) else each for each in conversations
        ]
        if not any(isinstance(each, list) for each in texts):
            self._add_column()  # the text has the processor's own placeholders
        elif self.column and not self.images:
            self._place(texts)
        elif not self.images and any(PLAIN in each[at][key] for each, at, key in _texts(texts)):
            what = f"a text contains {PLAIN!r}, which stands for an image, but the row has none"
            raise ImageError(what, "add a column images or image, or remove it from the text")
        _check_trained(texts)
        if len(self._shown) < len(self.column):
            what = f"the row has {len(self.column)} images, but only {len(self._shown)} places for them"
            raise ImageError(what, "write a part {type: image} in a message for each image, or remove the image")
        return texts

    def _message(self, message: Any) -> Any:
        key = "value" if isinstance(message, dict) and message.get("value") is not None else "content"
        if not isinstance(message, dict) or not isinstance(message.get(key), list):
            return message
        return {**message, key: "".join(self._part(part) for part in message[key])}

    def _part(self, part: Any) -> str:
        if isinstance(part, str):
            return self._checked(part)
        if not isinstance(part, dict):
            raise ImageError(f"a part of a content is {type(part).__name__}", "write {type: text, text: ...}")
        kind = part.get("type") or ("text" if part.get("text") is not None else "image")
        if kind == "text" and isinstance(part.get("text"), str):
            return self._checked(part["text"])
        if kind not in ("image", "image_url"):
            raise ImageError(f"a part of a content has the type {kind}", "use only parts of type text and image")
        has_own = any(part.get(key) is not None for key in KEYS)
        self._add(part if has_own else self._next(part.get("index")))
        return MARK

    def _next(self, index: Any) -> Any:
        at = len(self._shown) if index is None else int(index)
        if not 0 <= at < len(self.column):
            what = f"the conversation shows more images than the {len(self.column)} of the row"
            raise ImageError(what, "put them into the column images, or into the part itself")
        self._shown.add(at)
        return self.column[at]

    def _add(self, value: Any) -> None:
        self.images.append(reference(value, self.folder))

    def _add_column(self) -> None:
        for value in self.column:
            self._add(value)
        self._shown = {*range(len(self.column))}

    def _checked(self, text: str) -> str:
        if self.placeholder in text or MARK in text:
            what = f"a text contains {self.placeholder!r}, which stands for an image"
            raise ImageError(what, "write a part {type: image} instead, or remove it")
        return text

    def _place(self, conversations: list[Any]) -> None:
        """Puts marks into plain text: at each ``<image>``, else before the first user message. Changes the lists."""
        number, texts = len(self.column), list(_texts(conversations))
        places = sum(each[at][key].count(PLAIN) for each, at, key in texts)
        if places not in (0, number):
            what = f"the row has {number} images, but its text contains {PLAIN!r} {places} times"
            raise ImageError(what, "write it once for each image")
        users = [(each, at, key) for each, at, key in texts if _role(each[at]) in USERS]
        if not places and not users:
            raise ImageError("there is no user message in which to put the images", f"write {PLAIN} in the text")
        for each, at, key in texts if places else users[:1]:
            text = _marked(each[at][key]) if places else MARK * number + each[at][key]
            each[at] = {**each[at], key: text}
        self._add_column()


def _marked(text: str) -> str:
    """The text with a mark for each ``<image>``, without white space around those at its ends."""
    space = rf"(\s*{MARK}\s*)+"
    text = text.replace(PLAIN, MARK)
    return re.sub(rf"^{space}|{space}$", lambda found: MARK * found[0].count(MARK), text)


def _check_trained(conversations: list[Any]) -> None:
    for each, at, key in _texts(conversations):
        message = each[at]
        trained = any(message.get(key) for key in TRAINED)
        if MARK in message[key] and trained and _role(message) in USERS:
            what = "a user message with an image cannot be trained, because its place in the text is unknown"
            raise ImageError(what, "remove train or weight from it; formats:loss=all trains all of the text")


def _texts(conversations: list[Any]) -> Iterator[tuple[list[Any], int, str]]:
    """Messages whose content is text: the conversation, the message's index in it, and the key of its text."""
    for each in conversations:
        for at, message in enumerate(each if isinstance(each, list) else ()):
            keys = ("content", "value") if isinstance(message, dict) else ()
            if key := next((key for key in keys if isinstance(message.get(key), str)), None):
                yield each, at, key


def _role(message: dict[str, Any]) -> str:
    return str(message.get("role") or message.get("from")).lower()
