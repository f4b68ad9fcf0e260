"""The config of a peft method, made from the plugin's options or from the config's own fields."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from sftkit.api import ConfigError, Problem, nearest

#: Methods that adapt other layers than linear ones, or choose their layers themselves, as in their papers.
OWN_TARGETS = {"IA3", "LN_TUNING", "ADAPTION_PROMPT", "TRAINABLE_TOKENS"}
#: The plugin's options, and what the methods' configs call them.
ALIASES = {
    "r": ("r", "init_r"),
    "alpha": ("lora_alpha", "alpha"),
    "dropout": ("lora_dropout", "{method}_dropout", "dropout"),
    "target_modules": ("target_modules",),
    "target_parameters": ("target_parameters",),
}
LORA_DEFAULTS: dict[str, Any] = {"r": 16, "dropout": 0.0}
#: Methods that train a prompt and need its length, for which peft has no default.
PROMPTS = {"PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"}


def from_options(method: str, named: Mapping[str, Any], further: Mapping[str, Any], **more: Any) -> Any:
    """A config with sftkit's defaults.

    Args:
        method: its name in any spelling.
        named: values of the options in `ALIASES`, None where not set.
        further: fields of the method's config.
        more: fields that override all of these.

    Raises:
        ConfigError: for an unknown method or field, or a value that peft refuses.
    """
    chosen = _method(method, "plugin peft, option method")
    return chosen.make(_values(chosen, named, further) | more)


def from_fields(fields: Mapping[str, Any], **more: Any) -> Any:
    """A config from its fields, with peft's own defaults.

    Args:
        fields: as returned by `fields_of`; LoRA if there is no ``peft_type``.
        more: fields that override these.

    Raises:
        ConfigError: for an unknown method or field, a value that peft refuses, or a task other than causal modeling.
    """
    chosen = _method(str(fields.get("peft_type", "LORA")), "plugin peft, option config.peft_type")
    values = copy.deepcopy({name: value for name, value in fields.items() if name != "peft_type"})
    problems = chosen.unknown(values, "config")
    for name, fit in (("task_type", "CAUSAL_LM"), ("inference_mode", False)):
        if values.get(name, fit) not in (fit, None):
            what = f"training a causal language model needs {fit!r}, not {values[name]!r}"
            problems.append(Problem(what, f"plugin peft, option config.{name}", f"set it to {fit!r}, or remove it"))
    if problems:
        raise ConfigError(problems)
    return chosen.make(values | more)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """A field's default value."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def fields_of(value: Any) -> Any:
    """The fields of a `peft.PeftConfig` that differ from their defaults, ready for a manifest; other values unchanged.

    Raises:
        ValueError: for a config of a class unknown to peft, which could not be made again from its fields.
    """
    if not (dataclasses.is_dataclass(value) and hasattr(value, "peft_type")):
        return value
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    if PEFT_TYPE_TO_CONFIG_MAPPING.get(value.peft_type) is not type(value):
        raise ValueError(f"{type(value).__name__} is not one of peft's own configs")
    fields = {"peft_type": value.peft_type}
    for field in dataclasses.fields(value):
        if getattr(value, field.name) != default_of(field) and field.name != "peft_version":
            fields[field.name] = getattr(value, field.name)
    return {name: _plain(value) for name, value in fields.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return sorted(value) if isinstance(value, set) else value


class _Method(NamedTuple):
    name: str
    config: Any
    fields: list[str]

    def make(self, values: Mapping[str, Any]) -> Any:
        try:
            return self.config(**{"task_type": "CAUSAL_LM", **values})
        except (ValueError, TypeError) as error:
            what = f"peft refuses the options of {self.name}: {' '.join(str(error).split())}"
            raise ConfigError(Problem(what, "plugin peft, options", "correct the options")) from error

    def unknown(self, names: Iterable[str], option: str) -> list[Problem]:
        known = f"the fields of {self.name} are {', '.join(sorted(self.fields))}"
        return [
            Problem(
                f"{self.name} has no such field",
                f"plugin peft, option {option}.{name}",
                nearest(name, self.fields) or known,
            )
            for name in names
            if name not in self.fields
        ]


def _method(wanted: str, where: str) -> _Method:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    classes = {str(kind.value): cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = wanted.upper().replace("-", "_").replace(" ", "_")
    if name not in classes:
        known = [name.lower() for name in classes]
        fix = nearest(name.lower(), known) or f"the methods are {', '.join(sorted(known))}"
        raise ConfigError(Problem(f"peft has no method {wanted!r}", where, fix))
    return _Method(name, classes[name], [field.name for field in dataclasses.fields(classes[name])])


def _values(method: _Method, named: Mapping[str, Any], further: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the options set, by their names in this method's config."""
    options = dict(named)
    if method.name == "LORA":
        options = LORA_DEFAULTS | {name: value for name, value in options.items() if value is not None}
        options.setdefault("alpha", 2 * options["r"])
    if options.get("target_modules") is None and method.name not in OWN_TARGETS and "target_modules" in method.fields:
        options["target_modules"] = "all-linear"
    values, problems = {}, []
    for name, value in options.items():
        candidates = (alias.format(method=method.name.lower()) for alias in ALIASES[name])
        field = next((alias for alias in candidates if alias in method.fields), None)
        if value is not None and field is None:
            problems.append(Problem(f"{method.name} has no such option", f"plugin peft, option {name}", "remove it"))
        elif value is not None and field is not None:
            values[field] = int(value) if isinstance(value, float) and value.is_integer() else value
    reserved = {"task_type", "peft_type", "inference_mode", "base_model_name_or_path", "auto_mapping", *values}
    for name in further:
        if name in reserved:
            where = f"plugin peft, option options.{name}"
            problems.append(
                Problem(
                    "set by the plugin itself",
                    where,
                    "use the plugin's own option, or remove it",
                )
            )
    problems += method.unknown((name for name in further if name not in reserved), "options")
    if problems:
        raise ConfigError(problems)
    defaults = {"num_virtual_tokens": 20} if method.name in PROMPTS else {}
    return defaults | values | dict(further)
