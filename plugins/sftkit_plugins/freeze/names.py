"""Weights by the patterns of their names."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from sftkit.api import ConfigError, Problem, nearest, table_weights
from sftkit_plugins.freeze import WHERE

if TYPE_CHECKING:
    from torch import Tensor


class Named:
    """A trained weight.

    Attributes:
        weight: the weight.
        names: all its names: tied weights have several.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.names = weight, list[str]()


def trained_weights(model: Any) -> dict[int, Named]:
    """The weights that are trained now, by their identity."""
    found: dict[int, Named] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if weight.requires_grad:
            found.setdefault(id(weight), Named(weight)).names.append(name)
    return found


def size(weight: Any) -> int:
    """The number of values of a weight, also of one that DeepSpeed has divided."""
    return int(getattr(weight, "ds_numel", weight.numel()))


def matched(trained: dict[int, Named], patterns: Sequence[str], option: str) -> set[int]:
    """The identities of the weights in one of whose names a pattern is found.

    Raises:
        ConfigError: for each pattern that is found in none.
    """
    found: set[int] = set()
    problems = []
    for pattern in patterns:
        own = {key for key, each in trained.items() if any(re.search(pattern, name) for name in each.names)}
        found |= own
        if not own:
            names = [name for each in trained.values() for name in each.names]
            key = ("plugins", "freeze", option)
            problems.append(Problem(_without_match(pattern), f"{WHERE}, option {option}", near(pattern, names), key))
    if problems:
        raise ConfigError(problems)
    return found


def _without_match(pattern: str) -> str:
    return f"{pattern!r} matches no weight that could be trained"


def near(pattern: str, names: Sequence[str]) -> str:
    """The name that a pattern may have meant, or an example of one."""
    parts = dict.fromkeys(part for name in names for part in name.split(".") if not part.isdigit())
    plain = re.sub(r"[\\^$]", "", pattern)
    return nearest(plain, [*parts, *names]) or f"names are like {names[len(names) // 2]}"


def freeze(model: Any, trained: dict[int, Named], kept: Collection[int], new_token_ids: list[int]) -> None:
    """Freeze all weights but those that are kept. Changes the model.

    Raises:
        ConfigError: if nothing or everything would be frozen, or the embeddings of new tokens.
    """
    fix = "change the patterns: names are like " + ", ".join(each.names[0] for each in list(trained.values())[:2])
    if not trained.keys() & {*kept}:
        raise ConfigError(Problem("every weight is frozen", WHERE, fix))
    if trained.keys() <= {*kept}:
        raise ConfigError(Problem("no weight is frozen", WHERE, fix))
    tables = {id(weight) for weight in table_weights(model)}
    if new_token_ids and (frozen := tables & trained.keys() - {*kept}):
        names = ", ".join(name for key in frozen for name in trained[key].names)
        what = f"{len(new_token_ids):,} new tokens have rows in {names}, which would be frozen"
        raise ConfigError(Problem(what, WHERE, "train the embeddings and the output head, or add no tokens"))
    for key, each in trained.items():
        each.weight.requires_grad_(key in kept)
