"""How tokens are chosen: the options of the command, the model's own settings, and `/set`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from sftkit.api import ConfigError, Problem, nearest

MAX_NEW_TOKENS = 512
#: The settings, with their lower and upper bound.
BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "top_k": (0, 1_000_000),
    "repetition_penalty": (0.01, 100),
    "max_new_tokens": (1, 1_000_000),
}
_WHOLE = ("top_k", "max_new_tokens")


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: of the most likely tokens, those whose probabilities add up to this; 1 is all.
        top_k: this many of the most likely tokens; 0 is all.
        repetition_penalty: divides the score of tokens that have occurred; 1 is none.
        max_new_tokens: the length of an answer, at most.
        source: where the values come from, for people.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: int = MAX_NEW_TOKENS
    source: str = ""

    def __str__(self) -> str:
        """The settings that have an effect, for people."""
        parts = [f"temperature {self.temperature:g}"] if self.temperature else ["greedy"]
        if self.temperature and self.top_p < 1:
            parts.append(f"top_p {self.top_p:g}")
        if self.temperature and self.top_k:
            parts.append(f"top_k {self.top_k}")
        if self.repetition_penalty != 1:
            parts.append(f"repetition_penalty {self.repetition_penalty:g}")
        source = f" ({self.source})" if self.source else ""
        return f"{', '.join(parts)}{source}, at most {self.max_new_tokens} new tokens"

    def with_values(self, values: dict[str, float | int]) -> Sampling:
        """These settings with some changed. ``top_p`` or ``top_k`` without a temperature set it to 1.

        Args:
            values: by name, as `checked` returns them.
        """
        changed: dict[str, Any] = dict(values)
        if {"top_p", "top_k"} & changed.keys() and "temperature" not in changed and not self.temperature:
            changed["temperature"] = 1.0
        choosing = changed.keys() - {"max_new_tokens"}
        return dataclasses.replace(self, **changed, source="" if choosing else self.source)


def checked(values: dict[str, Any], place: str) -> dict[str, float | int]:
    """The values of settings by name, without those that are None.

    Args:
        values: the values.
        place: where one comes from, for an error; ``{}`` stands for its name with hyphens.

    Raises:
        ConfigError: with each value that is no number, or out of its range.
    """
    given = {name: value for name, value in values.items() if value is not None}
    problems = [
        problem
        for name, value in given.items()
        if (problem := _problem(name, value, place.format(name.replace("_", "-"))))
    ]
    if problems:
        raise ConfigError(problems)
    return {name: int(value) if name in _WHOLE else float(value) for name, value in given.items()}


def _problem(name: str, value: Any, place: str) -> Problem | None:
    low, high = BOUNDS[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and low <= value <= high and (name not in _WHOLE or value == int(value)):
        return None
    kind = "a whole number" if name in _WHOLE else "a number"
    return Problem(f"{value!r} is not allowed for {name}", place, f"use {kind} from {low:g} to {high:g}")


def sampling_of(model: Any, values: dict[str, float | int]) -> Sampling:
    """What the model's ``generation_config.json`` asks for, with other values on top; greedy without either.

    Args:
        model: a loaded model.
        values: as `checked` returns them.
    """
    own = model.generation_config
    found: dict[str, Any] = {"repetition_penalty": getattr(own, "repetition_penalty", None)}
    if getattr(own, "do_sample", False):
        found |= {"temperature": own.temperature or 1.0, "top_p": own.top_p, "top_k": own.top_k}
    found = {name: value for name, value in found.items() if value is not None}
    asked = "temperature" in found or found.get("repetition_penalty", 1) != 1
    return Sampling(**found, source="the model's generation_config.json" if asked else "").with_values(values)


def setting_named(name: str) -> str | None:
    """The setting of a name, written with hyphens or underscores; None if there is none."""
    plain = name.strip().replace("-", "_")
    return plain if plain in BOUNDS else None


def unknown_setting(name: str, variables: set[str], place: str) -> ConfigError:
    """The error for a name that is neither a setting nor a variable of the chat template."""
    fix = nearest(name, [*BOUNDS, *variables]) or f"use one of {', '.join([*BOUNDS, *sorted(variables)])}"
    return ConfigError(Problem(f"there is no setting {name!r}", place, fix))
