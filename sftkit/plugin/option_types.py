"""What the options of plugins take, in words: types, their limits, and values as YAML writes them."""

from __future__ import annotations

import collections.abc
import datetime
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from pydantic.fields import FieldInfo

_WORDS: dict[Any, str] = {datetime.date: "date", type(None): "", Any: "any value"}
_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def option_type(annotation: Any, mark: Callable[[str], str] = str) -> str:
    """The values that an option takes, as in ``lora, ia3`` or ``int at least 1``; None is not mentioned.

    Args:
        annotation: of the field, with its extras.
        mark: changes each single value, such as for Markdown.
    """
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *extras = typing.get_args(annotation)
        limits = [text for extra in extras for text in _limits(extra)]
        return " ".join([option_type(inner, mark), *([" and ".join(limits)] if limits else [])])
    return _joined(list(dict.fromkeys(_kinds(annotation, mark))))


def extras_of(annotation: Any) -> tuple[Any, ...]:
    """What ``Annotated`` adds to a type."""
    return typing.get_args(annotation)[1:] if typing.get_origin(annotation) is typing.Annotated else ()


def as_yaml(value: Any) -> str:
    """A default as one writes it in YAML; an empty text for None and for an empty collection."""
    if value is None or (isinstance(value, (str, list, tuple, dict)) and not value):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {as_yaml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    return str(value)


def _kinds(annotation: Any, mark: Callable[[str], str]) -> Iterator[str]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield option_type(annotation, mark)
    elif origin in (typing.Union, types.UnionType):
        for each in arguments:
            yield from _kinds(each, mark)
    elif origin is typing.Literal:
        yield from (mark(as_yaml(each)) for each in arguments)
    elif annotation is bool:
        yield from (mark("true"), mark("false"))
    elif origin in (list, tuple):
        yield f"list of {option_type(arguments[0], mark)}"
    elif origin is dict or annotation is dict:
        yield "mapping"
    elif origin is collections.abc.Callable:
        yield "function"
    elif annotation in _WORDS:
        yield from filter(None, [_WORDS[annotation]])
    else:
        yield annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _joined(kinds: list[str]) -> str:
    return ", ".join(kinds[:-1]) + " or " + kinds[-1] if len(kinds) > 1 else "".join(kinds)


def _limits(extra: Any) -> Iterator[str]:
    for each in extra.metadata if isinstance(extra, FieldInfo) else [extra]:
        for name, words in _LIMITS.items():
            if (limit := getattr(each, name, None)) is not None:
                yield f"{words} {limit:.10g}"
