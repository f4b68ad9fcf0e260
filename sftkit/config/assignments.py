"""``key=value`` on the command line: splitting and reading values."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

from sftkit.errors import ConfigError, Problem

_PLAIN = re.compile(r"""^([\[{"'].*|[-+]?[0-9]+|true|false|null|~)$""", re.DOTALL | re.IGNORECASE)
_DECIMAL = re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$")


def parse_value(text: str) -> Any:
    """The value of ``key=value``, parsed as YAML if it is quoted, a list, a mapping, a number, true, false or null.

    Any other text is kept unchanged: ``### Answer:``, for example, is a comment in YAML.
    """
    if _DECIMAL.match(text) and not text.lstrip("+-").isdigit():
        return float(text)  # YAML 1.1 reads 2e-5 as text
    if not _PLAIN.match(text):
        return text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: of a date or a number
        return text


def split_options(text: str) -> list[str]:
    """Split ``a=1,b=[2,3]`` at commas that are outside quotes and brackets and are followed by an option."""
    return _split(text, lambda rest: re.match(r"\s*[A-Za-z_][\w-]*=", rest) is not None)


def split_values(text: str) -> list[str]:
    """Split ``1,2,[3,4],"a, b"`` at commas that are outside quotes and brackets."""
    return [part.strip() for part in _split(text, lambda rest: True)]


def _split(text: str, separates: Callable[[str], bool]) -> list[str]:
    parts, depth, quote, start = [], 0, "", 0
    for index, char in enumerate(text):
        if quote:
            quote = "" if char == quote and text[index - 1] != "\\" else quote
        elif char in "\"'" and (index == 0 or text[index - 1] in "=[,{ "):
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and depth <= 0 and separates(text[index + 1 :]):
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


def parse_assignment(text: str, place: str) -> tuple[str, Any]:
    """Key and value of ``key=value``.

    Raises:
        ConfigError: if there is no ``=``.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(Problem(f"{text!r} is not of the form key=value", place, "write it as key=value"))
    return key.strip(), parse_value(value)
