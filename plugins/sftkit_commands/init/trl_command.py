"""The arguments of a command line such as ``accelerate launch sft.py ...``, which is read and not run."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from sftkit_commands.init.local import Places

_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::-([^}]*))?\}|(\w+))")
_LAUNCHERS = ("accelerate", "torchrun", "deepspeed")
_SEPARATORS = ("&&", "||", ";", "|", "&", ">", ">>", "2>&1")


def is_command(text: str) -> bool:
    """Whether a text has a command line that trains with TRL."""
    return next(_commands(text), None) is not None


def read_command(text: str, places: Places) -> dict[str, Any]:
    """The arguments of the last command of a shell script that trains.

    Args:
        text: the script, or the command line alone.
        places: where a file named by ``--config`` is.

    Returns:
        Values by name. Names of arguments of a launcher begin with its name, those of the environment with ``env.``.
    """
    *_, (environment, words) = _commands(text)
    found: dict[str, Any] = {f"env.{name}": value for name, value in environment.items()}
    launcher = os.path.basename(words[0])
    start = _script(words)
    if launcher in _LAUNCHERS:
        first = 2 if launcher == "accelerate" else 1
        found |= {f"{launcher}.{name}": value for name, value in _arguments(words[first : start - 1]).items()}
    given = _arguments(words[start:])
    if isinstance(given.get("config"), str) and (path := places.find(given["config"])):
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
        given = {**(read if isinstance(read, dict) else {}), **given}
    return {**found, **given}


def _commands(text: str) -> Any:
    """The environment and the words of each command that trains, variables replaced by their values."""
    variables: dict[str, str] = {}
    for line in re.sub(r"\\\s*\n", " ", text).splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # an open quote
            continue
        environment: dict[str, str] = {}
        while words and (match := _ASSIGNMENT.fullmatch(words[0])):
            environment[match[1]] = _expand(match[2], variables)
            words = words[1:]
        if words[:1] == ["export"] and len(words) == 2 and (match := _ASSIGNMENT.fullmatch(words[1])):
            environment[match[1]], words = _expand(match[2], variables), []
        if not words:
            variables |= environment
            continue
        end = next((index for index, word in enumerate(words) if word in _SEPARATORS), len(words))
        expanded = [_expand(word, variables) for word in words[:end]]
        if _script(expanded):
            yield environment, expanded


def _expand(text: str, variables: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[3]
        return variables.get(name, match[2] if match[2] is not None else match[0])

    return _VARIABLE.sub(value, text)


def _script(words: list[str]) -> int:
    """The position after the script, where its own arguments begin; 0 if the command does not train."""
    if words[:2] == ["trl", "sft"]:
        return 2
    program = os.path.basename(words[0]) if words else ""
    if not (program.startswith("python") or program in _LAUNCHERS):
        return 0
    for index, word in enumerate(words[1:], start=1):
        if word.endswith(".py"):
            return index + 1
        if word == "-m" and index + 1 < len(words) and "trl" in words[index + 1]:
            return index + 2
    return 0


def _arguments(words: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    name = ""
    for word in words:
        if re.match(r"--?[A-Za-z]", word):
            name, equals, text = word.lstrip("-").partition("=")
            name = name.replace("-", "_")
            found[name] = _value(text) if equals else True
            name = "" if equals else name
        elif name:
            earlier, value = found[name], _value(word)
            found[name] = (
                value if earlier is True else [*earlier, value] if isinstance(earlier, list) else [earlier, value]
            )
        else:
            found[f"arguments[{len(found)}]"] = word
    for name in [name for name, value in found.items() if name.startswith("no_") and value is True]:
        found[name[3:]] = not found.pop(name)
    return found


def _value(text: str) -> Any:
    if re.fullmatch(r"[-+]?\d*\.?\d+[eE][-+]?\d+", text):
        return float(text)  # which YAML 1.1 reads as text
    if text in ("None", ""):
        return None
    if not re.fullmatch(r"[-+]?\d+(\.\d*)?|[-+]?\.\d+|true|false|True|False|[\[{].*", text, re.DOTALL):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
