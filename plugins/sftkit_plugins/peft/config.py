"""The config of a method of peft, from the plugin's options or from fields that say it all."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from sftkit.api import ConfigError, Problem, nearest

#: Methods that adapt other layers than linear ones, or choose among those themselves, as their papers do.
OWN_TARGETS = {"IA3", "LN_TUNING", "ADAPTION_PROMPT", "TRAINABLE_TOKENS"}
#: The options spelled out, and the names their fields have in the methods' configs.
ALIASES = {
    "r": ("r", "init_r"),
    "alpha": ("lora_alpha", "alpha"),
    "dropout": ("lora_dropout", "{method}_dropout", "dropout"),
    "target_modules": ("target_modules",),
}
LORA_DEFAULTS: dict[str, Any] = {"r": 16, "dropout": 0.0}
#: Methods that train a prompt and need its length, which peft leaves open.
PROMPTS = {"PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"}


def from_options(method: str, named: Mapping[str, Any], further: Mapping[str, Any], **more: Any) -> Any:
    """A config with sftkit's defaults.

    Args:
        method: its name in any spelling.
        named: values of the options in `ALIASES`, None where not set.
        further: fields of the method's config.
        more: fields that go before all of these.

    Raises:
        ConfigError: for an unknown method or field, or a value that peft refuses.
    """
    chosen = _method(method, "plugin peft, option method")
    return chosen.made(_values(chosen, named, further) | more)


def from_fields(given: Mapping[str, Any], **more: Any) -> Any:
    """A config from its fields, with peft's own defaults.

    Args:
        given: what `fields_of` tells; LoRA where there is no ``peft_type``.
        more: fields that go before these.

    Raises:
        ConfigError: for an unknown method or field, a value that peft refuses, or what does not train causal models.
    """
    chosen = _method(str(given.get("peft_type", "LORA")), "plugin peft, option config.peft_type")
    values = copy.deepcopy({name: value for name, value in given.items() if name != "peft_type"})
    problems = chosen.unknown(values, "config")
    for name, fit in (("task_type", "CAUSAL_LM"), ("inference_mode", False)):
        if values.get(name, fit) not in (fit, None):
            what = f"a causal language model is trained here, and it is {values[name]!r}"
            problems.append(Problem(what, f"plugin peft, option config.{name}", f"set it to {fit!r}, or drop it"))
    if problems:
        raise ConfigError(problems)
    return chosen.made(values | more)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """A field's default value."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def fields_of(value: Any) -> Any:
    """The fields of a `peft.PeftConfig` that are not at their defaults, ready for a manifest; other values as given.

    Raises:
        ValueError: for a config of a class that peft does not know, which could not be made again from its fields.
    """
    if not (dataclasses.is_dataclass(value) and hasattr(value, "peft_type")):
        return value
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    if PEFT_TYPE_TO_CONFIG_MAPPING.get(value.peft_type) is not type(value):
        raise ValueError(f"{type(value).__name__} is none of peft's own configs")
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

    def made(self, values: Mapping[str, Any]) -> Any:
        try:
            return self.config(**{"task_type": "CAUSAL_LM", **values})
        except (ValueError, TypeError) as error:
            what = f"peft refuses the options of {self.name}: {' '.join(str(error).split())}"
            raise ConfigError(Problem(what, "plugin peft, options", "correct them")) from error

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


def _method(asked: str, where: str) -> _Method:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    classes = {str(kind.value): cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = asked.upper().replace("-", "_").replace(" ", "_")
    if name not in classes:
        known = [name.lower() for name in classes]
        fix = nearest(name.lower(), known) or f"the methods are {', '.join(sorted(known))}"
        raise ConfigError(Problem(f"peft has no method {asked!r}", where, fix))
    return _Method(name, classes[name], [field.name for field in dataclasses.fields(classes[name])])


def _values(method: _Method, named: Mapping[str, Any], further: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the options set, under the names that this method's config has for them."""
    asked = dict(named)
    if method.name == "LORA":
        asked = LORA_DEFAULTS | {name: value for name, value in asked.items() if value is not None}
        asked.setdefault("alpha", 2 * asked["r"])
    if asked.get("target_modules") is None and method.name not in OWN_TARGETS and "target_modules" in method.fields:
        asked["target_modules"] = "all-linear"
    values, problems = {}, []
    for name, value in asked.items():
        candidates = (alias.format(method=method.name.lower()) for alias in ALIASES[name])
        field = next((alias for alias in candidates if alias in method.fields), None)
        if value is not None and field is None:
            problems.append(Problem(f"{method.name} has no such option", f"plugin peft, option {name}", "drop it"))
        elif value is not None and field is not None:
            values[field] = int(value) if isinstance(value, float) and value.is_integer() else value
    reserved = {"task_type", "peft_type", "inference_mode", "base_model_name_or_path", "auto_mapping", *values}
    for name in further:
        if name in reserved:
            where = f"plugin peft, option options.{name}"
            problems.append(Problem("it is set already", where, "use the plugin's own option, or drop it"))
    problems += method.unknown((name for name in further if name not in reserved), "options")
    if problems:
        raise ConfigError(problems)
    defaults = {"num_virtual_tokens": 20} if method.name in PROMPTS else {}
    return defaults | values | dict(further)
