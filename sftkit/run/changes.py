"""What has changed between a run and its resumption, and whether it may."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sftkit.config.models import DataSection, ModelSection
from sftkit.config.resume_fields import FOLLOWS_METRIC, FREE_DATA, LENGTH, depends_on_length, length_of
from sftkit.config.train_checks import METRICS
from sftkit.config.train_fields import training_fields
from sftkit.errors import Problem, nearest
from sftkit.plugin.paths import absolute_at
from sftkit.plugin.registry import discover, installed_name
from sftkit.ranks import world_size
from sftkit.run.shares import BATCHES, differences, shares_of

WEIGHTS, WORLD_SIZE = "model.weights", "world_size"
MISSING = "not set"
#: Keys of the section ``evaluate`` on which metrics of completions depend.
COMPLETING = ("rows", "max_new_tokens")


@dataclass(frozen=True)
class Change:
    """One difference between a run and its resumption.

    Attributes:
        name: what has changed, such as ``train.learning_rate``.
        what: the difference, in words.
        final: whether a checkpoint cannot be continued with it at all.
        fix: how to undo it.
    """

    name: str
    what: str
    final: bool = False
    fix: str = "set it back"

    @property
    def problem(self) -> Problem:
        """The refusal of this change."""
        if self.final:
            fix = f"{self.fix}, or start a new run from the weights of a checkpoint, with model.name"
            return Problem(f"the state in the checkpoint is of another kind: {self.what}", self.name, fix)
        fix = f"{self.fix}, accept the change with --allow-change {self.name}, or start again with --overwrite"
        return Problem(f"changed since the run began: {self.what}", self.name, fix)


def change_name(name: str) -> str:
    """The name of a change as it was given, with the installed name of a plugin in it: ``plugins.flash_attn``."""
    section, _, rest = name.partition(".")
    if section != "plugins" or not rest:
        return name
    plugin, dot, option = rest.partition(".")
    return f"plugins.{installed_name(plugin, discover())}{dot}{option}"


def allows(allowed: Iterable[str], name: str) -> bool:
    """Whether one of the names is this one, or a part of the configuration that contains it."""
    return any(f"{name}.".startswith(f"{each}.") for each in allowed)


def unknown_names(allowed: Iterable[str], plugins: Iterable[str]) -> Iterator[Problem]:
    """Names that cannot be a change.

    Args:
        allowed: what may change.
        plugins: the names of the plugins before and now.
    """
    known = ["model", WEIGHTS, "data", "train", "evaluate", "evaluate.best", "plugins", WORLD_SIZE]
    for section, fields in (("model", ModelSection.model_fields), ("data", DataSection.model_fields)):
        known += [f"{section}.{name}" for name in fields]
    known += ["evaluate", *(f"evaluate.{name}" for name in COMPLETING)]
    known += [f"train.{name}" for name in training_fields()]
    chosen = [f"plugins.{name}" for name in plugins]
    for name in allowed:
        if name not in (*known, *chosen) and not any(name.startswith(f"{plugin}.") for plugin in chosen):
            fix = nearest(name, [*known, *chosen]) or "name a section or a key, such as data or train.learning_rate"
            yield Problem("nothing of this name can change", f"--allow-change {name}", fix)


def configuration_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    """Differences that are known before data is read.

    Args:
        old: the manifest of the run.
        new: that of its resumption.
    """
    base = old.get("working_directory", "")
    for section, free in (("model", frozenset[str]()), ("data", FREE_DATA)):
        yield from _differences(section, old["config"][section], new["config"][section], free, base)
    if not str(new["config"]["train"].get("metric_for_best_model") or "loss").endswith(METRICS):
        one, other = ({key: each["config"].get("evaluate", {}).get(key) for key in COMPLETING} for each in (old, new))
        yield from _differences("evaluate", one, other)
    before, after = old["config"]["plugins"], new["config"]["plugins"]
    for name in sorted({*before, *after}):
        if name in before and name in after:
            yield from _differences(f"plugins.{name}", before[name], after[name], base=base)
        else:
            yield Change(f"plugins.{name}", "it was selected" if name in before else "it was not selected")
    yield from _train_changes(old, new)
    if (engine := old["engine"]["name"]) != (other := new["engine"]["name"]):
        what = f"the engine was {engine}, and is {other}"
        yield Change("plugins", what, final=True, fix=f"use the engine {engine} again")
    yield from _share_changes(old, new)


def _share_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    """Another number of processes, or of groups of them, unless they continue exactly."""
    before, now = shares_of(old, new, world_size())
    if before.groups == now.groups:
        return
    other = before.processes != now.processes
    what = f"{before.processes} processes -> {now.processes}"
    what = what if other else f"{before.replicas} groups of processes -> {now.replicas}"
    if other and not new["engine"]["reshards"]:
        of_each = f"the engine {new['engine']['name']} has divided the optimizer among {before.processes} processes"
        yield Change(WORLD_SIZE, f"{what}, and {of_each}", final=True)
    elif why := differences(old, new, now.processes):
        streams = bool(new["config"]["data"]["streaming"])
        yield Change(WORLD_SIZE, f"{what}, and {why}", streams, before.advice(now))


def _train_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    before, after = dict(old["train"]), dict(new["train"])
    fields = training_fields()
    for name in {*before} ^ {*after}:  # of another version of transformers, or free with one of both schedules
        before.setdefault(name, old["config"]["train"].get(name, fields[name].default if name in fields else MISSING))
        after.setdefault(name, new["config"]["train"].get(name, fields[name].default if name in fields else MISSING))
    shares, shared = shares_of(old, new, world_size())
    elsewhere = shares.groups != shared.groups and shares.rows == shared.rows  # reported with the processes
    free = (*LENGTH, *BATCHES) if elsewhere or not differences(old, new, world_size()) else LENGTH
    chosen = [each["config"].get("evaluate", {}).get("best") for each in (old, new)]
    if any(chosen) and before["metric_for_best_model"] != after["metric_for_best_model"]:  # it sets both fields
        yield from _differences("evaluate", {"best": chosen[0]}, {"best": chosen[1]})
        before |= {name: after[name] for name in ("metric_for_best_model", "greater_is_better")}
    for change in _differences("train", before, after, free):
        schedules = {before["lr_scheduler_type"], after["lr_scheduler_type"]}
        other = change.name == "train.lr_scheduler_type" and schedules & {*FOLLOWS_METRIC}
        yield replace(change, final=bool(other or change.name == "train.optim"))
    (field, length), (now, longer) = length_of(before), length_of(after)
    if field != now or longer < length:
        yield Change(f"train.{now}", _lengths(field, length, now, longer))


def _differences(
    where: str, before: Mapping[str, Any], after: Mapping[str, Any], free: Iterable[str] = (), base: str = ""
) -> Iterator[Change]:
    for key in sorted({*before, *after} - {*free}):
        old, new = before.get(key, MISSING), after.get(key, MISSING)
        if old != new and not _same_path((where, key), old, new, base):
            yield Change(f"{where}.{key}", f"{_shown(old)} -> {_shown(new)}")


def _same_path(key: tuple[str, ...], old: Any, new: Any, base: str) -> bool:
    """Whether two values are the same path, of which one may be relative to the earlier run's working directory."""
    if absolute_at(key, old, base) == absolute_at(key, new):
        return True
    both = isinstance(old, str) and isinstance(new, str)  # the options of plugins may be paths too
    return both and os.path.isabs(old) != os.path.isabs(new) and os.path.join(base, old) == os.path.abspath(new)


def _shown(value: Any) -> str:
    text = value if value is MISSING else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def grown(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """How much longer the run is now, in words; empty if it is not, as a run of zero steps never is."""
    (field, length), (now, longer) = length_of(old["train"]), length_of(new["train"])
    changed = _lengths(field, length, now, longer)
    return f"train.{now} {changed}" if field == now and longer > length else changed if field != now else ""


def waits(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a run that has stopped early waits longer now, so that it goes on."""
    if not old.get("stopped"):
        return False
    before, after = (each["config"]["evaluate"]["patience"] for each in (old, new))
    return after is None or (before is not None and after > before)


def _lengths(field: str, length: float, now: str, longer: float) -> str:
    return f"{length:g} -> {longer:g}" if field == now else f"{field} {length:g} -> {now} {longer:g}"


def schedule_note(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What a larger number of steps does to the schedule of the learning rate; empty if it does nothing."""
    longer = grown(old, new)
    if not longer or not depends_on_length(new["train"]):
        return ""
    schedule = new["train"]["lr_scheduler_type"]
    return (
        f"{longer}: the schedule {schedule} depends on the number of steps. The steps so far had the learning rates of "
        "the shorter run; those to come have the rates of the longer one"
    )


def data_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    """Differences of the prepared data, split by split."""
    for split in dict.fromkeys((*old["data"], *new["data"])):
        before, after = old["data"].get(split), new["data"].get(split)
        name = "data.train" if split == "train" else "data.eval"
        if before is None or after is None:
            yield Change(name, f"there is {'no longer' if before else 'now'} a set {split!r}")
        elif before.get("fingerprint") != after.get("fingerprint"):
            yield Change(name, _rows(before.get("rows"), after.get("rows")))


def _rows(before: int | None, after: int | None) -> str:
    if before is None or after is None:  # a stream has no number of rows
        return "the data has other contents"
    if before == after:
        return f"the data still has {after:,} rows, but other contents"
    return f"the data has {after:,} rows, and had {before:,}"


def weight_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    """Differences of the base weights."""
    before, after = old["weights"], new["weights"]
    for key in sorted({*before, *after}):
        one, other = before.get(key, MISSING), after.get(key, MISSING)
        if isinstance(one, dict) and isinstance(other, dict):  # of a file
            if common := [part for part in one if part in other and one[part] != other[part]]:
                parts = ", ".join(f"{part} {one[part]} -> {other[part]}" for part in common)
                yield Change(WEIGHTS, f"{key}: {parts}")
        elif one != other:
            yield Change(WEIGHTS, f"{key}: {_shown(one)} -> {_shown(other)}")


def version_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The libraries and plugins whose versions differ, in words; empty if none does."""
    before = {**old["parts"][-1]["versions"], **{f"plugin {n}": i["version"] for n, i in old["plugins"].items()}}
    after = {**new["versions"], **{f"plugin {n}": i["version"] for n, i in new["plugins"].items()}}
    both = [name for name in after if name in before and before[name] != after[name]]
    return ", ".join(f"{name} {before[name]} -> {after[name]}" for name in both)
