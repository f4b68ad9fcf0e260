"""What the values of columns are, whatever way they are stored: text, numbers, lists, mappings, or anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

MAX_KEYS = 100  # mappings with more keys in all, such as the arguments of many tools, are described as JSON

Shape: TypeAlias = Any
"""A name in `SCALARS`, ``"null"`` or ``"json"``; a list with one shape; or a mapping of keys to shapes."""

SCALARS = {str: "string", bool: "bool", int: "int64", float: "float64"}
_NUMBERS = {"int64", "float64"}
_NAMES = {"string": "text", "bool": "a boolean", "int64": "a number", "float64": "a number"}


def shape_of(value: Any) -> Shape:
    """The shape of a value of JSON."""
    if value is None:
        return "null"
    if (scalar := SCALARS.get(type(value))) is not None:
        return scalar
    if isinstance(value, Mapping):
        return {str(key): shape_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [merged(map(shape_of, value))]
    return next((name for kind, name in SCALARS.items() if isinstance(value, kind)), "json")


def merged(shapes: Iterable[Shape]) -> Shape:
    """The shape of values of all these shapes.

    Text beside other scalars is text: most likely, the other values are mistakes, and the formatter names their rows.
    """
    result: Shape = "null"
    for shape in shapes:
        if shape != result:
            result = _both(result, shape)
    return result


def _both(one: Shape, two: Shape) -> Shape:
    if one == "null" or two == "null":
        return two if one == "null" else one
    if isinstance(one, list) and isinstance(two, list):
        return [merged(one + two)]
    if isinstance(one, dict) and isinstance(two, dict):
        keys = {**one, **two}
        if len(keys) > MAX_KEYS:
            return "json"
        return {key: merged([one.get(key, "null"), two.get(key, "null")]) for key in keys}
    if isinstance(one, str) and isinstance(two, str):
        if {one, two} == _NUMBERS:
            return "float64"
        if "string" in (one, two) and "json" not in (one, two):
            return "string"
    return "json"


def feature_of(shape: Shape) -> Any:
    """A shape as a feature of `datasets`."""
    from datasets import Json, List, Value

    if isinstance(shape, list):
        return List(feature_of(shape[0]))
    if isinstance(shape, dict):
        return {key: feature_of(item) for key, item in shape.items()} or Json()
    return Json() if shape == "json" else Value(shape)


def kind_of_value(value: Any) -> str:
    """What a value is, for people."""
    shape = shape_of(value)
    if isinstance(shape, str):
        return _NAMES.get(shape, "null")
    return "a list" if isinstance(shape, list) else "an object"
