"""Raw configuration from YAML files and ``key=value`` overrides, with the place of each value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from sftkit.config.variables import References
from sftkit.errors import ConfigError, Problem

Key = tuple[str, ...]

MOST_VALUES = 100_000
_TEXT = "tag:yaml.org,2002:str"
NESTED_FIX = "write fewer and flatter values"
NOT_WRITTEN = "not_written"  # in the `config.yaml` of a run: what of the run a file cannot hold
SHORT = {"model": "name", "data": "train"}  # `model: x` is short for `model: {name: x}`


@dataclass(frozen=True)
class Place:
    """Where a value was set.

    Attributes:
        text: such as ``sft.yaml:7``.
        folder: of the file, to which its relative paths refer; None for what is not in a file.
    """

    text: str
    folder: Path | None = None


COMMAND_LINE = Place("command line")


@dataclass
class ConfigSource:
    """Raw configuration values, and the place that each comes from, for error messages.

    Attributes:
        values: by section.
        places: by key.
        references: the text of values that refer to variables of the environment, by key.
        files: those that were read, in their order.
    """

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, Place] = field(default_factory=dict)
    references: dict[Key, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def where(self, key: Key) -> str:
        """Place and name of a key, such as ``sft.yaml:7, data.max_length``."""
        name = ".".join(map(str, key))  # YAML has keys that are no text
        place = self.place(key)
        return f"{place.text}, {name}" if place else name

    def place(self, key: Key) -> Place | None:
        """Where a key, or what contains it, was set."""
        return next((self.places[key[:end]] for end in range(len(key), 0, -1) if key[:end] in self.places), None)

    def set(self, key: Key, value: Any, place: Place) -> None:
        """Set one value. A mapping is merged into an existing mapping; any other value replaces the old one."""
        nested = dict(value) if isinstance(value, Mapping) else value
        for part in reversed(key[1:]):
            nested = {part: nested}
        self.merge(ConfigSource({key[0]: nested}, {key: place}))

    def merge(self, later: ConfigSource) -> None:
        """Set all values of a later source, which is not used afterwards.

        A mapping is merged into an existing one, and plugins are added to those that are selected. Any other value
        replaces the old one.
        """
        self.files += later.files
        for section in SHORT:
            self.lengthen(section)
            later.lengthen(section)
        for name, value in later.values.items():
            if name == "plugins" and not _mergeable(self.values.get(name), value):
                self._add_plugins(later)
            else:
                self._merge(self.values, (name,), value, later)

    def lengthen(self, section: str) -> None:
        """Write ``model: x`` as ``model: {name: x}``."""
        value = self.values.get(section)
        if not isinstance(value, str | list):
            return
        self.values[section] = {SHORT[section]: value}
        for kept in (self.places, self.references):
            inner = {(section, SHORT[section], *key[1:]): item for key, item in kept.items() if key[0] == section}
            kept.update(cast("dict[Key, Any]", inner))

    def _merge(self, target: dict[Any, Any], key: Key, value: Any, later: ConfigSource, name: Any = None) -> None:
        name = key[-1] if name is None else name  # YAML has names that are no text
        old = target.get(name)
        if isinstance(value, Mapping) and isinstance(old, dict):
            for inner, item in value.items():
                self._merge(old, (*key, str(inner)), item, later, inner)
            return
        target[name] = value
        self._replace_notes(key, later, key)

    def _replace_notes(self, key: Key, later: ConfigSource, source_key: Key) -> None:
        """Take over the places of one value, and forget those of the value that was there."""
        place = later.place(source_key)
        for kept, new in ((self.places, later.places), (self.references, later.references)):
            notes = cast("dict[Key, Any]", kept)
            for known in [known for known in notes if known[: len(key)] == key]:
                del notes[known]
            size = len(source_key)
            notes.update({(*key, *known[size:]): item for known, item in new.items() if known[:size] == source_key})
        if place is not None:
            self.places[key] = place

    def _add_plugins(self, later: ConfigSource) -> None:
        """Select the plugins of a later source after those of this one, as a list."""
        listed: list[Any] = []
        made = ConfigSource()
        for source in (self, later):
            value = source.values.get("plugins")
            names = list(value) if isinstance(value, Mapping) else None
            items = [{name: item} for name, item in value.items()] if isinstance(value, Mapping) else value or []
            if not isinstance(items, list):  # which is an error of the selection
                self._merge(self.values, ("plugins",), value, source)
                return
            for index, item in enumerate(items):
                own = ("plugins", str(index if names is None else names[index]))
                made._replace_notes(("plugins", str(len(listed))), source, own)
                if names is not None:  # for the places of its options
                    made._replace_notes(own, source, own)
                listed.append(item)
        self.values["plugins"] = listed
        self._replace_notes(("plugins",), made, ("plugins",))


def _mergeable(old: Any, new: Any) -> bool:
    """Whether selected plugins can be merged name by name, and not only added."""
    if old is None or new is None:
        return True
    both = isinstance(old, Mapping) and isinstance(new, Mapping)
    return both and not any(value is False and name in old for name, value in new.items())


def read_yaml(path: Path) -> ConfigSource:
    """Read a YAML file safely, with the values of the environment's variables that it refers to.

    Raises:
        ConfigError: if it cannot be read, is not a mapping, sets a key twice, or refers to a variable that is not set;
            with file and line.
    """
    try:
        references = References(path.read_text(encoding="utf-8"))
        root = yaml.compose(references.text, Loader=yaml.SafeLoader)
        _check_size(root, str(path))
        source = ConfigSource(files=[path])
        problems = list(_Reader(path, references, source).read(root, ()))
        values = None if root is None else SafeConstructor().construct_document(root)
    except FileNotFoundError:
        what = f"no such file: {path.absolute()}"
        raise ConfigError(Problem(what, str(path), "use the path of a YAML file")) from None
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
    if values is not None and not isinstance(values, dict):
        raise ConfigError(Problem("the file is not a mapping", f"{path}:1", "start it with `model:` and `data:`"))
    if problems:
        raise ConfigError(problems)
    source.values = values or {}
    return source


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


@dataclass
class _Reader:
    """Goes through the nodes of a file: notes their places, and expands references in values."""

    path: Path
    references: References
    source: ConfigSource
    expanded: dict[int, str] = field(default_factory=dict)

    def read(self, node: Any, key: Key) -> Iterator[Problem]:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                if isinstance(name, yaml.ScalarNode):
                    name.value = self.references.restore(name.value)
                inner = (*key, str(name.value))
                place = self._place(name)
                if inner in self.source.places:
                    what = f"the key is set twice, first in {self.source.places[inner].text}"
                    yield Problem(what, f"{place.text}, {'.'.join(inner)}", "remove one")
                self.source.places[inner] = place
                yield from self.read(value, inner)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                inner = (*key, str(index))
                self.source.places[inner] = self._place(value)
                yield from self.read(value, inner)
        elif isinstance(node, yaml.ScalarNode):
            yield from self._expand(node, key)

    def _expand(self, node: yaml.ScalarNode, key: Key) -> Iterator[Problem]:
        text = node.value
        if self.references.inside(text):
            place = f"{self._place(node).text}, {'.'.join(key)}"
            yield from (Problem(what, place, fix) for what, fix in self.references.problems(text))
            if self.references.refers(text):
                self.expanded[id(node)] = self.references.restore(text)
            node.value = self.references.expand(text)
            if node.style is None and node.tag == _TEXT:  # plain: it has the type of what is now there
                node.tag = Resolver().resolve(yaml.ScalarNode, node.value, (True, False))
        if id(node) in self.expanded:  # again for an alias
            self.source.references[key] = self.expanded[id(node)]

    def _place(self, node: Any) -> Place:
        return Place(f"{self.path}:{node.start_mark.line + 1}", self.path.parent)
