"""Conversations whose pictures are taken out: a mark is left in the text where each was."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sftkit_plugins.vision.pictures import KEYS, PictureError, Reference, reference
from sftkit_plugins.vision.template import MARK

#: What stands for a picture in plain text, as in the data of LLaVA.
WRITTEN = "<image>"
USERS = ("user", "human")


@dataclass
class Row:
    """The pictures of one row, in the order in which its conversation shows them.

    Args:
        given: those of the row's own column.
        placeholder: the processor's token, which text may not hold.
        folder: where relative paths begin.
    """

    given: Sequence[Any]
    placeholder: str
    folder: Path
    pictures: list[Reference] = field(default_factory=list)
    _shown: set[int] = field(default_factory=set)

    def taken(self, conversations: Sequence[Any]) -> list[Any]:
        """The conversations (lists of messages) with text alone; what is none of them is given back as it is.

        Raises:
            PictureError: for a picture that cannot be had, or pictures and places that do not match.
        """
        made = [
            [self._message(message) for message in each] if isinstance(each, list) else each for each in conversations
        ]
        if not any(isinstance(each, list) for each in made):
            self._add_all()  # the text says where they are
        elif self.given and not self.pictures:
            self._place(made)
        elif not self.pictures and any(WRITTEN in each[at][key] for each, at, key in _texts(made)):
            what = f"a text says {WRITTEN!r}, where a picture stands, and the row has none"
            raise PictureError(what, "give it in a column images or image, or take it out of the text")
        _check_trained(made)
        if len(self._shown) < len(self.given):
            what = f"the row has {len(self.given)} pictures, and {len(self._shown)} places for them"
            raise PictureError(what, "give each a part {type: image} in a message, or take it out")
        return made

    def _message(self, message: Any) -> Any:
        key = "value" if isinstance(message, dict) and message.get("value") is not None else "content"
        if not isinstance(message, dict) or not isinstance(message.get(key), list):
            return message
        return {**message, key: "".join(self._part(part) for part in message[key])}

    def _part(self, part: Any) -> str:
        if isinstance(part, str):
            return self._checked(part)
        if not isinstance(part, dict):
            raise PictureError(f"a part of a content is {type(part).__name__}", "write {type: text, text: ...}")
        kind = part.get("type") or ("text" if part.get("text") is not None else "image")
        if kind == "text" and isinstance(part.get("text"), str):
            return self._checked(part["text"])
        if kind not in ("image", "image_url"):
            raise PictureError(f"a part of a content is of type {kind}", "plugin vision takes text and image")
        has_own = any(part.get(key) is not None for key in KEYS)
        self._add(part if has_own else self._next(part.get("index")))
        return MARK

    def _next(self, index: Any) -> Any:
        at = len(self._shown) if index is None else int(index)
        if not 0 <= at < len(self.given):
            what = f"the conversation shows more pictures than the {len(self.given)} of the row"
            raise PictureError(what, "give them in the column images, or in the part itself")
        self._shown.add(at)
        return self.given[at]

    def _add(self, value: Any) -> None:
        self.pictures.append(reference(value, self.folder))

    def _add_all(self) -> None:
        for value in self.given:
            self._add(value)
        self._shown = {*range(len(self.given))}

    def _checked(self, text: str) -> str:
        if self.placeholder in text or MARK in text:
            what = f"a text holds {self.placeholder!r}, which stands for a picture"
            raise PictureError(what, "write a part {type: image} in its place, or take it out")
        return text

    def _place(self, conversations: list[Any]) -> None:
        """Plain text: where it says ``<image>``, else in front of the first user's message. Changes the lists."""
        number, texts = len(self.given), list(_texts(conversations))
        places = sum(each[at][key].count(WRITTEN) for each, at, key in texts)
        if places not in (0, number):
            what = f"the row has {number} pictures, and {places} times {WRITTEN!r} in its text"
            raise PictureError(what, "write it once for each picture")
        users = [(each, at, key) for each, at, key in texts if _role(each[at]) in USERS]
        if not places and not users:
            raise PictureError("no message of the user to put the pictures in front of", "write <image> in the text")
        for each, at, key in texts if places else users[:1]:
            text = _marked(each[at][key]) if places else MARK * number + each[at][key]
            each[at] = {**each[at], key: text}
        self._add_all()


def _marked(text: str) -> str:
    """A mark for each ``<image>``, without the white space between text and those at its borders."""
    space = rf"(\s*{MARK}\s*)+"
    text = text.replace(WRITTEN, MARK)
    return re.sub(rf"^{space}|{space}$", lambda found: MARK * found[0].count(MARK), text)


def _check_trained(conversations: list[Any]) -> None:
    for each, at, key in _texts(conversations):
        message = each[at]
        asked = message.get("train") or message.get("weight")
        if MARK in message[key] and asked and _role(message) in USERS:
            what = "a user's message with a picture is to be trained, whose place in the text is not known"
            raise PictureError(what, "take train or weight off it; or set formats:loss=all to train all of the text")


def _texts(conversations: list[Any]) -> Iterator[tuple[list[Any], int, str]]:
    """The messages whose content is text: the conversation, the message's place in it, and its key of the text."""
    for each in conversations:
        for at, message in enumerate(each if isinstance(each, list) else ()):
            keys = ("content", "value") if isinstance(message, dict) else ()
            if key := next((key for key in keys if isinstance(message.get(key), str)), None):
                yield each, at, key


def _role(message: dict[str, Any]) -> Any:
    return message.get("role") or message.get("from")
