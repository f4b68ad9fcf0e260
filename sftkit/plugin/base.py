"""The base of plugins: a frozen dataclass whose fields are options and whose ``@hookimpl`` methods fill hooks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import pluggy
from pydantic import ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from sftkit.errors import ConfigError, Problem, nearest
from sftkit.redact import without_secrets

__all__ = ["Field", "Plugin", "dataclass", "hookimpl"]

hookimpl = pluggy.HookimplMarker("sftkit")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", coerce_numbers_to_str=True))
class Plugin:
    """Base of all plugins.

    Write a subclass with ``@dataclass(frozen=True, kw_only=True)``: its fields are the plugin's options (validated by
    pydantic, described with ``Annotated[..., Field(description=...)]``), its docstring's first line is the summary in
    ``sftkit plugins``, and its methods marked ``@hookimpl`` fill the hooks of `sftkit.plugin.hookspecs`.

    Raises:
        ConfigError: from the constructor, for an unknown option (with the nearest name) or a value of a wrong type.
    """

    #: The version of the API that it was written for, as in ``"1.0"``; the run needs this one or a later ``"1.x"``.
    api: ClassVar[str] = ""
    #: Packages that the plugin needs, as in ``("pillow>=10",)``; checked without importing them.
    requires: ClassVar[tuple[str, ...]] = ()
    #: The plugin cannot work without a GPU.
    needs_gpu: ClassVar[bool] = False
    #: Names of plugins that cannot be selected together with this one.
    conflicts: ClassVar[tuple[str, ...]] = ()
    #: Modules that must be imported before transformers is.
    import_first: ClassVar[tuple[str, ...]] = ()
    #: Files and directories that the plugin writes into the run directory, besides what `export_model` does.
    writes: ClassVar[tuple[str, ...]] = ()
    #: Options that may be paths; in a configuration file, they are relative to it.
    paths: ClassVar[tuple[str, ...]] = ()
    #: Fields of TrainingArguments that the plugin takes the place of, each with its option for them, or "" for none.
    replaces: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="wrap")
    @classmethod
    def _validate(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            problems = [option_problem(cls, dict(item)) for item in error.errors()]
            raise ConfigError(problems) from None


def option_names(cls: type[Plugin]) -> list[str]:
    """The names of a plugin's options."""
    return [field.name for field in dataclasses.fields(cls)]


def option_problem(cls: type[Plugin], error: dict[str, Any]) -> Problem:
    """A pydantic error of a plugin's constructor as a Problem that names the plugin and the option."""
    path = ".".join(str(part) for part in error["loc"])
    where = f"plugin {cls.__name__}, option {path}" if path else f"plugin {cls.__name__}"
    key = tuple(str(part) for part in error["loc"])
    if error["type"] == "unexpected_keyword_argument":
        names = option_names(cls)
        known = f"its options are: {', '.join(names)}" if names else "it has no options"
        return Problem("no such option", where, nearest(path, names) or known, key)
    if error["type"] in ("missing", "missing_keyword_only_argument", "missing_argument"):
        return Problem("this option is required", where, f"set it, as in {path}=...", key)
    return Problem(wrong_value(error), where, "correct the value", key)


#: What pydantic's errors of a limit say of the value, by their type.
_LIMITS = {
    "greater_than": "above",
    "greater_than_equal": "at least",
    "less_than": "below",
    "less_than_equal": "at most",
}


def wrong_value(error: Mapping[str, Any], several: bool = False) -> str:
    """What is wrong with a value, from a pydantic error.

    Args:
        error: one of ``ValidationError.errors()``.
        several: whether the field takes several types, each of which has an error of its own.
    """
    place = error["loc"]
    value = without_secrets(error.get("input"), str(place[-1]) if place else "")
    if several:
        return f"{value!r} is none of the values that it takes"
    if limit := _LIMITS.get(error["type"]):
        return f"{value!r} is out of range: it must be {limit} {next(iter(error['ctx'].values())):g}"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    return f"{value!r} is not possible: {message}"
