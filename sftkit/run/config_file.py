"""``config.yaml`` in a run directory: the configuration of the run, which can be run again."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import os
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic.fields import FieldInfo

from sftkit import DISTRIBUTION, demo
from sftkit.config.models import function_name
from sftkit.config.source import NOT_WRITTEN, ConfigSource, Key
from sftkit.config.variables import escaped
from sftkit.plugin.paths import absolute, absolute_at, is_option
from sftkit.plugin.selected import DEFAULTS
from sftkit.redact import without_secrets
from sftkit.user_modules import module_directories

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet, Selected
    from sftkit.run.inputs import RunInputs

CONFIG = "config.yaml"


@dataclasses.dataclass(frozen=True)
class WrittenConfig:
    """The configuration of a run as a file.

    Attributes:
        config: the configuration as resolved.
        text: of the file, which has no secrets.
        secrets: the values of the variables that it refers to.
    """

    config: RunConfig
    text: str
    secrets: dict[str, str] = dataclasses.field(repr=False)


def write_config(
    config: RunConfig, plugins: PluginSet, source: ConfigSource, inputs: RunInputs, directory: Path
) -> WrittenConfig:
    """What was set in a configuration, with absolute paths and without secrets.

    Args:
        config: the run as resolved.
        plugins: those of the run.
        source: what it was resolved from, for the names of variables that secrets come from.
        inputs: objects that were passed, which cannot be written.
        directory: of the run.
    """
    written = _Written(source)
    for name in type(config).model_fields:
        if name not in ("train", "plugins"):
            written.section(name, _set_values(name, getattr(config, name)))
    written.section("train", {name: value for name, value in config.train.items() if name != "output_dir"})
    written.plugins(plugins)
    for name in ("collator", "callbacks", "compute_metrics"):
        if value := getattr(inputs, name):
            items = value if isinstance(value, tuple) else (value,)
            written.not_written[name] = ", ".join(_described(item) for item in items)
    if inputs.tokenizer is not None:
        written.sections.setdefault("model", {})["tokenizer"] = f"loaded {type(inputs.tokenizer).__name__}"
    return WrittenConfig(config, written.text(directory), written.secrets)


def _set_values(section: str, values: Any) -> dict[str, Any]:
    """The values of a section that were set, in the order of its fields."""
    found = {name: getattr(values, name) for name in type(values).model_fields if name in values.model_fields_set}
    found = {name: value for name, value in found.items() if value is not None}
    if section == "model" and found["name"] == str(demo.MODEL):
        found = {"name": demo.NAME, **{name: value for name, value in found.items() if name not in ("name", "init")}}
    if section == "run" and (folders := module_directories()):
        found["modules"] = folders
    return {name: absolute_at((section, name), value) for name, value in found.items()}


class _Written:
    """Collects the sections, with what cannot be written."""

    def __init__(self, source: ConfigSource) -> None:
        self.source = source
        self.sections: dict[str, Any] = {}
        self.secrets: dict[str, str] = {}
        self.not_written: dict[str, str] = {}

    def section(self, name: str, values: Mapping[str, Any]) -> None:
        """Add a section; an empty one is left out."""
        found = {
            key: self._value((name, key), value)
            for key, value in values.items()
            if not self._refused((name, key), value)
        }
        if found:
            self.sections[name] = found

    def plugins(self, plugins: PluginSet) -> None:
        """Add the selected plugins with the options that differ from their defaults, and dropped defaults."""
        found: dict[str, Any] = {}
        for item in plugins.selected:
            if item.name.startswith("__main__:") or "<locals>" in item.name:
                self.not_written[f"plugin {item.name.partition(':')[2]}"] = "a plugin that is defined in a script"
                continue
            options: dict[str, Any] = {}
            for key, value in _changed_options(item):
                if not self._refused(("plugins", item.name, key), value):
                    options[key] = self._value(("plugins", item.name, key), value)
            if options != DEFAULTS.get(item.name):
                found[item.name] = options
        names = {item.name for item in plugins.selected}
        found |= {name: False for name in DEFAULTS if name not in names}
        if found:
            self.sections["plugins"] = found

    def _refused(self, key: Key, value: Any) -> bool:
        """Whether a value cannot be written, which is noted."""
        reason = _unwritable(value)
        if not reason and without_secrets({"keys": _names(value)}) != {"keys": _names(value)}:
            reason = "a name with a secret"
        if reason:
            self.not_written[".".join(key)] = reason
        return bool(reason)

    def _value(self, key: Key, value: Any) -> Any:
        plain = _plain(value)
        hidden = without_secrets({key[-1]: plain})[key[-1]]
        return self._without_secrets(key, plain, hidden)

    def _without_secrets(self, key: Key, value: Any, hidden: Any) -> Any:
        """The value in which variables take the places of secrets."""
        if isinstance(value, dict):
            return {name: self._without_secrets((*key, str(name)), item, hidden[name]) for name, item in value.items()}
        if isinstance(value, list):
            return [self._without_secrets((*key, str(n)), item, hidden[n]) for n, item in enumerate(value)]
        if value == hidden:
            return escaped(value) if isinstance(value, str) else value
        if reference := self.source.references.get(key):
            names = re.findall(r"(?<!\$)\$\{(\w+)", reference)
            self.secrets |= {name: os.environ[name] for name in names if name in os.environ}
            return reference
        name = re.sub(r"\W", "_", "_".join(key)).upper()
        self.secrets[name] = value
        return f"${{{name}}}"

    def text(self, directory: Path) -> str:
        """The file's text."""
        lines = [
            f"# The configuration of this run, written by sftkit {metadata.version(DISTRIBUTION)}.",
            f"# Run it again: sftkit run {directory / CONFIG}",
            "# That makes a directory of its own; --resume continues this run, and --overwrite replaces it.",
        ]
        if self.secrets:
            names = ", ".join(self.secrets)
            lines.append(f"# Secrets are not written. Set these environment variables first: {names}")
        order = (
            "model",
            "data",
            "train",
            *(n for n in self.sections if n not in ("model", "data", "train", "plugins")),
        )
        blocks = [{name: self.sections[name]} for name in (*order, "plugins") if name in self.sections]
        if self.not_written:
            blocks.append({NOT_WRITTEN: self.not_written})
        return "\n".join(["\n".join(lines) + "\n", *(_dumped(block) for block in blocks)])


def _changed_options(item: Selected) -> Iterator[tuple[str, Any]]:
    """The options of a plugin that differ from the declared defaults, with absolute paths."""
    for field in dataclasses.fields(item.plugin):
        value, default = getattr(item.plugin, field.name), field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if isinstance(default, FieldInfo):
            default = default.get_default(call_default_factory=True, validated_data={})
        if type(value) is not type(default) or value != default:
            if field.name in item.plugin.paths:
                value = _absolute(value)
            yield field.name, value


def _absolute(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_absolute(each) for each in value]
    return absolute(value, is_option) if isinstance(value, str) else value


def _unwritable(value: Any) -> str:
    """Why a value cannot be written; empty if it can."""
    if isinstance(value, Mapping):
        return next(filter(None, map(_unwritable, value.values())), "")
    if isinstance(value, list | tuple | set | frozenset):
        return next(filter(None, map(_unwritable, value)), "")
    if value is None or isinstance(value, str | int | float | Path | enum.Enum | datetime.date):
        return ""
    if callable(value) and not re.search(r"^__main__:|<(locals|lambda)>", function_name(value)):
        return "" if hasattr(value, "__qualname__") else _described(value)
    return _described(value)


def _plain(value: Any) -> Any:
    """A value as YAML has it."""
    if isinstance(value, Mapping):
        return {_plain(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, Path | datetime.date):
        return str(value)
    for kind in (bool, str, int, float):  # YAML writes these types alone, not those that are derived from them
        if isinstance(value, kind):
            return kind(value)
    return function_name(value) if callable(value) else value


def _names(value: Any) -> list[str]:
    """The texts among the names of a mapping and those inside of it."""
    if isinstance(value, Mapping):
        return [
            *(name for name in value if isinstance(name, str)),
            *(n for item in value.values() for n in _names(item)),
        ]
    return []


def _described(value: Any) -> str:
    name = getattr(value, "__qualname__", None)
    return f"the Python object {name}" if name else f"a Python object of the class {type(value).__name__}"


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as a block."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def _dumped(block: dict[str, Any]) -> str:
    return yaml.dump(block, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
