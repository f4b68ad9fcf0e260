"""Descriptions of the installed plugins; a plugin that cannot be imported is described as broken."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable
from importlib import metadata
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sftkit.errors import ConfigError
from sftkit.plugin.base import Plugin
from sftkit.plugin.calls import hooks_filled
from sftkit.plugin.option_types import as_yaml, extras_of, option_type
from sftkit.plugin.registry import check_class, discover, distribution_of, installed_name, load_class
from sftkit.plugin.versions import api_problem


def all_plugins() -> list[dict[str, Any]]:
    """Name, version, distribution, status, hooks, requirements and summary of every installed plugin."""
    known = discover()
    return [_describe(name, known)[0] for name in known]


def one_plugin(name: str) -> dict[str, Any]:
    """The same for one plugin, with its documentation and options.

    Raises:
        ConfigError: if there is no plugin of that name.
    """
    known = discover()
    name = installed_name(name, known)
    if name not in known:
        load_class(name, known)
    info, cls = _describe(name, known)
    documentation = inspect.cleandoc(cls.__doc__ or "") if cls else info["summary"]
    return {**info, "documentation": documentation, "options": describe_options(cls) if cls else []}


def _describe(name: str, known: dict[str, list[metadata.EntryPoint]]) -> tuple[dict[str, Any], type[Plugin] | None]:
    distribution, version = distribution_of(known[name][0]) if name in known else ("", "")
    info: dict[str, Any] = {
        "name": name,
        "version": version,
        "distribution": distribution,
        "status": "ready",
        "hooks": [],
        "requires": [],
        "summary": "",
    }
    if len(known.get(name, [])) > 1:
        info["distribution"] = ", ".join(sorted(distribution_of(point)[0] or "?" for point in known[name]))
    try:
        cls = load_class(name, known)
    except ConfigError as error:
        problem = error.problems[0]
        return {**info, "status": f"broken: {re.sub('^plugin .* is broken: ', '', problem.what)}"}, None
    info["hooks"], info["requires"] = hooks_filled(cls), list(cls.requires)
    info["summary"] = (inspect.cleandoc(cls.__doc__ or "").splitlines() or [""])[0]
    problems = check_class(cls, name)
    if problems and api_problem(cls.api, name):
        info["status"] = f"incompatible: {problems[0].what}; {problems[0].fix}"
    elif problems:
        first = problems[0]
        gpu = "GPU" in first.what
        info["status"] = "needs a GPU" if gpu else f"missing: {first.fix}" if first.fix else f"broken: {first.what}"
    return info, cls


def describe_options(cls: type[Plugin], mark: Callable[[str], str] = str) -> list[dict[str, str]]:
    """Name, type, default and description of each option, as text.

    Args:
        cls: the plugin.
        mark: changes each single value that an option takes, such as for Markdown.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    options = []
    for field in dataclasses.fields(cls):
        annotation = hints[field.name]
        if isinstance(field.default, FieldInfo):
            annotation = typing.Annotated[annotation, field.default]
        described = [e.description for e in extras_of(annotation) if isinstance(e, FieldInfo) and e.description]
        options.append(
            {
                "name": field.name,
                "type": option_type(annotation, mark),
                "default": _default(field),
                "description": " ".join(described),
            }
        )
    return options


def _default(field: dataclasses.Field[Any]) -> str:
    default: Any = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if isinstance(default, FieldInfo):  # pydantic's Field as the default
        default = default.get_default(call_default_factory=True)
    return "required" if default in (dataclasses.MISSING, PydanticUndefined) else as_yaml(default)
