"""Which tool a file belongs to, and what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from sftkit_commands.init import axolotl, axolotl_run, llamafactory, llamafactory_run, trl, trl_run
from sftkit_commands.init.local import Places
from sftkit_commands.init.translation import Translation
from sftkit_commands.init.trl_command import is_command, read_command
from sftkit_commands.init.trl_python import is_script, read_script

Format = Literal["axolotl", "llamafactory", "trl"]
FORMATS: tuple[Format, ...] = ("axolotl", "llamafactory", "trl")
_MARKS = {"axolotl": axolotl.MARKS, "llamafactory": llamafactory.MARKS, "trl": trl.MARKS}
_FIX = "give a YAML or JSON file of Axolotl, LLaMA-Factory or TRL, a shell script that starts TRL, or a Python script"


def translate(path: Path, target: Path, kind: str = "") -> Translation:
    """The translation of a file.

    Args:
        path: the file.
        target: directory of the new file, to which its paths are relative.
        kind: ``axolotl``, ``llamafactory`` or ``trl``; by default it is recognised.

    Raises:
        ConfigError: if the file cannot be read, its tool is not recognised, or it is no supervised fine-tuning.
    """
    from sftkit.api import ConfigError, Problem, nearest

    if kind and kind not in FORMATS:
        raise ConfigError(
            Problem(f"there is no format {kind!r}", "--format", nearest(kind, FORMATS) or f"use {', '.join(FORMATS)}")
        )
    try:
        return _translate(path, target, kind)
    except (ValueError, TypeError, AttributeError) as error:
        what = f"a value is not of the type that its key takes: {error}"
        raise ConfigError(Problem(what, str(path), "correct it, or leave it out")) from error


def _translate(path: Path, target: Path, kind: str) -> Translation:
    from sftkit.api import ConfigError, Problem

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(Problem(f"cannot read the file: {error}", str(path), "check its name")) from None
    places = Places(path.resolve().parent, target)
    if kind in ("", "trl") and path.suffix not in (".yaml", ".yml", ".json"):
        if path.suffix != ".sh" and is_script(text):
            script = read_script(text)
            return trl_run.translate(script.values, places, script=True, old=script.old)
        if is_command(text):
            return trl_run.translate(read_command(text, places), places)
    values = _mapping(path, text)
    kind = kind or _recognise(values, path)
    _refuse_others(values, kind, path)
    if kind == "axolotl":
        return axolotl_run.translate(values, places)
    return llamafactory_run.translate(values, places) if kind == "llamafactory" else trl_run.translate(values, places)


def _mapping(path: Path, text: str) -> dict[str, Any]:
    import yaml

    from sftkit.api import ConfigError, Problem

    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else getattr(error, "lineno", "")
        what = getattr(error, "problem", None) or getattr(error, "msg", None) or str(error)
        raise ConfigError(Problem(f"not valid: {what}", f"{path}:{line}" if line else str(path), _FIX)) from None
    if not isinstance(values, dict):
        raise ConfigError(Problem("the file holds no keys and values", str(path), _FIX))
    return values


def _recognise(values: dict[str, Any], path: Path) -> str:
    from sftkit.api import ConfigError, Problem

    if isinstance(values.get("model"), dict) or ("model" in values and "data" in values):
        raise ConfigError(Problem("it is a configuration of sftkit already", str(path), f"sftkit check {path}"))
    scores = {kind: sum(key in values for key in marks) for kind, marks in _MARKS.items()}
    best = max(scores, key=lambda kind: scores[kind])
    if not scores[best] or sorted(scores.values())[-2] == scores[best]:
        raise ConfigError(
            Problem("the tool that it belongs to is not recognised", str(path), f"--format {' | '.join(FORMATS)}")
        )
    return best


def _refuse_others(values: dict[str, Any], kind: str, path: Path) -> None:
    """Training on preferences or rewards is refused: as supervised fine-tuning it would be another run."""
    from sftkit.api import ConfigError, Problem

    other = next((key for key in axolotl.OTHER_METHODS if values.get(key)), "") if kind == "axolotl" else ""
    if kind == "llamafactory" and values.get("stage", "sft") not in llamafactory.STAGES:
        other = "stage"
    if other:
        what = f"{other}: {values[other]} is no supervised fine-tuning"
        raise ConfigError(Problem(what, str(path), "translate a configuration of supervised fine-tuning"))
