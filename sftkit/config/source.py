"""Raw configuration from a YAML file and ``key=value`` overrides, with the place of each value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sftkit.errors import ConfigError, Problem

Key = tuple[str, ...]

MOST_VALUES = 100_000
NESTED_FIX = "write fewer and flatter values"
SHORT = {"model": "name", "data": "train"}  # `model: x` is short for `model: {name: x}`


@dataclass
class ConfigSource:
    """Raw configuration values, and the place that each comes from, for error messages."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)

    def where(self, key: Key) -> str:
        """Place and name of a key, such as ``sft.yaml:7, data.max_length``."""
        name = ".".join(map(str, key))  # YAML has keys that are no text
        for end in range(len(key), 0, -1):
            if key[:end] in self.places:
                return f"{self.places[key[:end]]}, {name}"
        return name

    def set(self, key: Key, value: Any, place: str) -> None:
        """Set one value. A mapping is merged into an existing mapping; any other value replaces the old one."""
        section: dict[str, Any] = self.values
        for depth, part in enumerate(key[:-1], start=1):
            inner = section.get(part)
            if not isinstance(inner, dict):
                short = SHORT.get(part) if depth == 1 else None
                inner = {short: inner} if short and isinstance(inner, str | list) else {}
                section[part] = inner
            section = inner
        old = section.get(key[-1])
        if isinstance(value, Mapping) and isinstance(old, dict):
            for name, item in value.items():
                self.set((*key, str(name)), item, place)
            return
        section[key[-1]] = dict(value) if isinstance(value, Mapping) else value
        self.places[key] = place


def read_yaml(path: Path) -> ConfigSource:
    """Read a YAML file safely.

    Raises:
        ConfigError: if it cannot be read, is not a mapping, or sets a key twice; with file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_size(root, str(path))
        values = yaml.safe_load(text)
    except FileNotFoundError:
        raise ConfigError(Problem("no such file", str(path), "use the path of a YAML file")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            Problem(f"cannot read the file: {error}", str(path), "check the file and its permissions")
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(
            Problem(f"not valid YAML: {getattr(error, 'problem', error)}", where, "correct the line")
        ) from None
    except (ValueError, OverflowError) as error:  # of a date or a number
        raise ConfigError(Problem(f"not valid YAML: {error}", str(path), "put the value in quotes")) from None
    except RecursionError:
        raise ConfigError(Problem("the values are nested too deeply", str(path), NESTED_FIX)) from None
    if values is None:
        return ConfigSource()
    if not isinstance(values, dict):
        raise ConfigError(Problem("the file is not a mapping", f"{path}:1", "start it with `model:` and `data:`"))
    places: dict[Key, str] = {}
    problems = list(_collect_places(root, (), path, places))
    if problems:
        raise ConfigError(problems)
    return ConfigSource(values, places)


def _check_size(root: Any, place: str) -> None:
    """Raises:
    ConfigError: if aliases make the values endless, or far more than the file has.
    """
    sizes: dict[int, int] = {}
    inside: set[int] = set()

    def size(node: Any) -> int:
        if id(node) in inside:
            line = f"{place}:{node.start_mark.line + 1}"
            raise ConfigError(Problem("the value contains itself", line, "remove the alias"))
        if id(node) not in sizes:
            inside.add(id(node))
            children = node.value if isinstance(node, yaml.CollectionNode) else ()
            parts = (part for child in children for part in (child if isinstance(child, tuple) else (child,)))
            sizes[id(node)] = 1 + sum(map(size, parts))
            inside.remove(id(node))
        return sizes[id(node)]

    if root is not None and (number := size(root)) > MOST_VALUES:
        what = f"the aliases stand for {number:,} values, more than {MOST_VALUES:,}"
        raise ConfigError(Problem(what, place, NESTED_FIX))


def _collect_places(node: Any, key: Key, path: Path, places: dict[Key, str]) -> Iterable[Problem]:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            inner = (*key, str(name.value))
            place = f"{path}:{name.start_mark.line + 1}"
            if inner in places:
                yield Problem(
                    f"the key is set twice, first in {places[inner]}", f"{place}, {'.'.join(inner)}", "remove one"
                )
            places[inner] = place
            yield from _collect_places(value, inner, path, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            inner = (*key, str(index))
            places[inner] = f"{path}:{value.start_mark.line + 1}"
            yield from _collect_places(value, inner, path, places)


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
    parts, depth, quote, start = [], 0, "", 0
    for index, char in enumerate(text):
        if quote:
            quote = "" if char == quote and text[index - 1] != "\\" else quote
        elif char in "\"'" and text[index - 1] in "=[,{ ":
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and depth <= 0 and re.match(r"\s*[A-Za-z_]\w*=", text[index + 1 :]):
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
