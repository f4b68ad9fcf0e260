"""A configuration that is translated: each of its keys ends up in exactly one list, and nothing is lost silently."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["translated", "always", "lost", "unknown"]
OFF: tuple[Any, ...] = (False, 0, 0.0, "", [], {}, "no", "none")
_SECRET = re.compile(
    r"(api_key|_secret|auth_token|hub_token|hf_token|access_token|password|(^|\.)token)$", re.IGNORECASE
)
_SECRET_VALUE = re.compile(r"(hf_|sk-)[A-Za-z0-9]{16,}")


@dataclass(frozen=True)
class Entry:
    """What became of one key.

    Attributes:
        key: as it is in the file, such as ``datasets[0].type``.
        value: its value.
        kind: the list that it is in: ``translated``; ``always``, since sftkit does so without being asked, or the value
            asks for nothing; ``lost``, which sftkit does not do; or ``unknown``, if the tool itself has no such key.
        target: what it became.
        note: what is different, or why it has no counterpart.
        fix: what to do instead.
    """

    key: str
    value: Any
    kind: Kind
    target: str = ""
    note: str = ""
    fix: str = ""

    @property
    def shown(self) -> str:
        """The value on one line; secrets are hidden."""
        return shown(self.key, self.value)


@dataclass(frozen=True)
class Expression:
    """A value that a script computes, which is not run; its source text."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class To:
    """The rule of a key that becomes one key of sftkit.

    Attributes:
        target: dotted path, such as ``train.learning_rate``.
        convert: makes the value.
        note: what is different.
        default: the default of sftkit, which need not be written.
    """

    target: str
    convert: Callable[[Any], Any] | None = None
    note: str = ""
    default: Any = None


@dataclass(frozen=True)
class Always:
    """The rule of a key that needs no counterpart."""

    reason: str


@dataclass(frozen=True)
class Lost:
    """The rule of a key without counterpart; a value that switches it off loses nothing.

    Attributes:
        reason: why there is none.
        fix: what to do instead.
        off: further values that ask for nothing, such as the tool's default.
    """

    reason: str
    fix: str = ""
    off: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Handled:
    """The rule of a key that is read by code, together with others; ``becomes`` says what it becomes, for people."""

    becomes: str


Rule = To | Always | Lost | Handled


@dataclass
class Translation:
    """The keys of a file, what became of each, and the configuration that they make.

    Attributes:
        peer: the tool whose file it is, as in ``Axolotl``.
        given: keys and values of the file; those of nested mappings and lists have paths as keys.
        entries: what became of each key.
        values: the configuration of sftkit.
        sources: what each value of it comes from, by dotted path.
        defaults: paths of the values that are written because the tool's default differs.
        files: further files of the run, by name.
        remarks: differences that belong to no key.
    """

    peer: str
    given: dict[str, Any]
    entries: dict[str, Entry] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    defaults: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the file; the default if there is none, or it is null or not known."""
        value = self.given.get(key)
        return default if value is None or isinstance(value, Expression) else value

    def pending(self, key: str) -> bool:
        """Whether the file has the key, and nothing has become of it yet."""
        return key in self.given and key not in self.entries

    def below(self, prefix: str) -> dict[str, Any]:
        """The values whose keys begin with a path, by the rest of their keys."""
        return {key[len(prefix) :]: value for key, value in self.given.items() if key.startswith(prefix)}

    def put(self, target: str, value: Any, source: str = "") -> None:
        """Set a value of the configuration."""
        *path, last = target.split(".")
        section = self.values
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
        self.sources[target] = source

    def default(self, target: str, value: Any) -> None:
        """Set a value that the file does not have, because the tool's default is not sftkit's."""
        if not self.has(target):
            self.put(target, value, f"default of {self.peer}")
            self.defaults.append(target)

    def has(self, target: str) -> bool:
        """Whether the configuration has a value."""
        return self.value(target, _MISSING) is not _MISSING

    def value(self, target: str, default: Any = None) -> Any:
        """A value of the configuration."""
        found: Any = self.values
        for part in target.split("."):
            if not isinstance(found, dict) or part not in found:
                return default
            found = found[part]
        return found

    def drop(self, target: str) -> None:
        """Remove a value of the configuration."""
        *path, last = target.split(".")
        section = self.value(".".join(path)) if path else self.values
        if isinstance(section, dict):
            section.pop(last, None)
        if target in self.defaults:
            self.defaults.remove(target)

    def select(self, plugin: str, **options: Any) -> None:
        """Select a plugin, with the options that are not None."""
        self.values.setdefault("plugins", {}).setdefault(plugin, {}).update(
            {name: value for name, value in options.items() if value is not None}
        )

    def selected(self, plugin: str) -> bool:
        """Whether a plugin is selected."""
        return plugin in self.values.get("plugins", {})

    def translated(self, key: str, target: str, note: str = "") -> None:
        """Record that a key has become something; does nothing for a key that the file does not have."""
        self._record(Entry(key, self.given.get(key), "translated", target, note))
        if key in self.given and self.has(target) and not self.sources.get(target):
            self.sources[target] = key

    def move(self, key: str, target: str, value: Any = None, note: str = "") -> None:
        """Set a value of the configuration from a key, if the file has it; by default the same value."""
        if self.get(key) is None:
            return
        self.put(target, self.given[key] if value is None else value, key)
        self.translated(key, target, note)

    def move_or_default(self, key: str, target: str, value: Any) -> None:
        """Set a value of the configuration from a key, or from the tool's default if the file does not have it."""
        if self.get(key) is None:
            self.default(target, value)
        else:
            self.move(key, target)

    def always(self, key: str, reason: str) -> None:
        """Record that a key needs no counterpart."""
        self._record(Entry(key, self.given.get(key), "always", note=reason))

    def lose(self, key: str, reason: str, fix: str = "") -> None:
        """Record that a key has no counterpart."""
        self._record(Entry(key, self.given.get(key), "lost", note=reason, fix=fix))

    def demote(self, key: str, reason: str, fix: str = "") -> None:
        """Record that a key which seemed to be translated has no counterpart after all."""
        self.entries.pop(key, None)
        self.lose(key, reason, fix)

    def _record(self, entry: Entry) -> None:
        if entry.key not in self.given:
            return
        if entry.key in self.entries and self.get(entry.key) is None:
            return  # empty, or only known to a script: it was taken first
        if entry.key in self.entries:
            raise RuntimeError(f"{entry.key} is in two lists: {self.entries[entry.key].kind} and {entry.kind}")
        self.entries[entry.key] = entry

    def blank(self, known: Container[str] = ()) -> None:
        """Take the keys that have no value, and those whose value only a script knows.

        Args:
            known: the keys that the tool has, those of list items as ``[].name``; the others are listed as unknown.
        """
        for key, value in self.given.items():
            if value is None and (key in known or re.sub(r"^\w+\[\d+\]\.", "[].", key) in known):
                self.always(key, "it is empty")
            elif isinstance(value, Expression):
                self.lose(key, "the script computes it, and is not run", "write the value by hand")

    def apply(self, rules: Mapping[str, Rule], unused: str = "") -> None:
        """Apply the rules to the keys that no handler has taken.

        Args:
            rules: by key.
            unused: why a key that is left to handlers may have been taken by none.
        """
        for key in [key for key in self.given if key in rules and self.pending(key)]:
            rule, value = rules[key], self.given[key]
            if isinstance(rule, To) and rule.default is not None and value == rule.default:
                self.always(key, "it is the default")
            elif isinstance(rule, To):
                self.put(rule.target, rule.convert(value) if rule.convert else value, key)
                self.translated(key, rule.target, rule.note)
            elif isinstance(rule, Always):
                self.always(key, rule.reason)
            elif isinstance(rule, Lost) and (_is_off(value) or value in rule.off):
                self.always(key, "it switches off what sftkit does not do")
            elif isinstance(rule, Lost):
                self.lose(key, rule.reason, rule.fix)
            elif unused:
                self.always(key, unused)
            else:
                raise RuntimeError(f"no handler has taken {key}")

    def finish(self) -> Translation:
        """List the keys that are left as unknown, and order all as they are in the file."""
        for key in self.given:
            if key not in self.entries:
                self._record(Entry(key, self.given[key], "unknown"))
        self.entries = {key: self.entries[key] for key in self.given}
        return self

    def of_kind(self, kind: Kind) -> list[Entry]:
        """The entries of one list."""
        return [entry for entry in self.entries.values() if entry.kind == kind]


_MISSING = object()


def _is_off(value: Any) -> bool:
    return any(value == off and type(value) is type(off) for off in OFF)


def shown(key: str, value: Any) -> str:
    """A value on one line; secrets are hidden, by the names of their keys or their own form."""
    secret = (_SECRET.search(key) and value) or _SECRET_VALUE.search(str(value))
    return "..." if secret else brief(value)


def brief(value: Any, most: int = 60) -> str:
    """A value on one line, of limited length."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split()) or json.dumps(value, default=str)
    return text if len(text) <= most else text[: most - 3] + "..."
