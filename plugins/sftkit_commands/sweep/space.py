"""What a sweep varies: values separated by commas, or ranges, and the names of its runs."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sftkit.api import ConfigError, Problem, parse_value, split_values

_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(:log)?")
LONGEST = 150


@dataclass(frozen=True)
class Range:
    """The numbers between two ends, which belong to it; whole numbers if both ends are.

    Attributes:
        low: the lower end.
        high: the upper end.
        log: whether the logarithm is spread evenly.
    """

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether it has whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class Space:
    """What varies, and what does not.

    Attributes:
        fixed: configuration files, and assignments of one value.
        values: texts to choose from, by key.
        ranges: ranges of numbers, by key.
    """

    fixed: list[str]
    values: dict[str, list[str]]
    ranges: dict[str, Range]

    @property
    def keys(self) -> list[str]:
        """All that varies."""
        return [*self.values, *self.ranges]

    def grid(self) -> list[dict[str, str]]:
        """Every combination of the values; the last key varies fastest."""
        return [dict(zip(self.values, chosen, strict=True)) for chosen in itertools.product(*self.values.values())]

    def corners(self) -> list[dict[str, str]]:
        """Combinations in which each value and each end of a range occurs."""
        ends = {key: [repr(each.low), repr(each.high)] for key, each in self.ranges.items()}
        choices = {**self.values, **ends}
        first = {key: texts[0] for key, texts in choices.items()}
        return [first, *({**first, key: text} for key, texts in choices.items() for text in texts[1:])]

    def described(self) -> dict[str, object]:
        """Plain data, to compare it with an earlier one."""
        ranges = {key: [each.low, each.high, each.log] for key, each in self.ranges.items()}
        return {"values": self.values, "ranges": ranges}


def read_space(arguments: Iterable[str], trials: bool) -> Space:
    """What a command's arguments vary.

    Args:
        arguments: configuration files, and ``key=value`` with one value, several, or a range.
        trials: whether ranges are possible.

    Raises:
        ConfigError: if nothing varies, or values are empty, given twice, or a range where there is none.
    """
    space, problems = Space([], {}, {}), []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or os.path.isfile(argument):
            space.fixed.append(argument)
            continue
        texts = split_values(text)
        if found := _RANGE.fullmatch(text):
            problems += _add_range(space, key, found, trials)
        elif len(texts) == 1:
            space.fixed.append(argument)
        elif "" in texts or len(set(texts)) < len(texts):
            problems.append(Problem(f"a value of {text!r} is empty or given twice", key, "correct the list"))
        elif trials and any(isinstance(parse_value(item), dict) and parse_value(item) for item in texts):
            problems.append(Problem("mappings cannot be tried", key, "run a grid, without --trials"))
        else:
            space.values[key] = texts
    if not problems and not space.keys:
        fix = "give a key several values, as in train.learning_rate=1e-5,2e-5"
        problems.append(Problem("nothing varies", "sftkit sweep", fix))
    if problems:
        raise ConfigError(problems)
    return space


def _add_range(space: Space, key: str, found: re.Match[str], trials: bool) -> list[Problem]:
    low, high = parse_value(found[1]), parse_value(found[2])
    if not trials:
        return [Problem(f"{found[0]} is a range", key, "set the number of runs with --trials, or list values")]
    if not low < high or (found[3] and low <= 0):
        fix = "write LOW..HIGH with the lower end first; with :log it must be above 0"
        return [Problem(f"{found[0]} has no numbers", key, fix)]
    space.ranges[key] = Range(low, high, bool(found[3]))
    return []


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """The shortest endings of keys that differ: ``learning_rate`` for ``train.learning_rate``."""
    kept = list(keys)
    found = {}
    for key in kept:
        parts = key.split(".")
        endings = [".".join(parts[-size:]) for size in range(1, len(parts) + 1)]
        others = [other for other in kept if other != key]
        found[key] = next((e for e in endings if not any(f".{o}".endswith(f".{e}") for o in others)), key)
    return found


def run_names(combinations: Iterable[Mapping[str, str]]) -> list[str]:
    """A name for a run's directory from each combination, such as ``learning_rate-1e-5,r-8``."""
    names: list[str] = []
    for chosen in combinations:
        short = short_keys(chosen)
        parts = [f"{short[key]}-{_plain(text)}" for key, text in chosen.items()]
        name = ",".join(parts)[:LONGEST]
        number = next(n for n in itertools.count(1) if (name if n == 1 else f"{name}-{n}") not in names)
        names.append(name if number == 1 else f"{name}-{number}")
    return names


def _plain(text: str) -> str:
    """A text for a file name; of a path, only its last part."""
    last = text.strip("\"'").rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.+-]+", "_", last).strip("_") or "empty"
