"""Axolotl's ``datasets``: where the rows come from, and those for evaluation."""

from __future__ import annotations

import re

from sftkit_commands.init import axolotl_formats
from sftkit_commands.init.axolotl_dataset import DATASET_RULES, READERS, Entry, entries
from sftkit_commands.init.axolotl_prompts import known_prompt
from sftkit_commands.init.local import Places
from sftkit_commands.init.mixing import combine, fraction
from sftkit_commands.init.translation import Translation


def data(t: Translation, places: Places) -> None:
    """Training and evaluation data, and their format."""
    streamed = entries(t, "pretraining_dataset")
    train = entries(t, "datasets") or streamed
    if train and train == streamed:
        t.put("data.streaming", True, "pretraining_dataset")
    sources(t, train, places)
    evaluation(t, entries(t, "test_datasets"), train, places)
    kinds = {entry.kind for entry in train}
    if len(kinds) > 1:
        _mixed_kinds(t, train)
    for number, entry in enumerate(train):
        axolotl_formats.format_of(t, entry, places, first=number == 0)
    conversations = any(axolotl_formats.is_chat(entry) for entry in train)
    axolotl_formats.inputs(t, conversations)
    axolotl_formats.template(t, train, places, conversations)


def rest(t: Translation) -> None:
    """The keys of the entries that nothing else has taken."""
    for key in ("datasets", "test_datasets", "pretraining_dataset"):
        for entry in entries(t, key):
            rules = {entry.prefix + name: rule for name, rule in DATASET_RULES.items()}
            t.apply(rules, "it has no effect on this format")


def sources(t: Translation, found: list[Entry], places: Places) -> None:
    """Where the rows come from: one source, or several that are used together."""
    names = [_source(t, entry, places) for entry in found]
    if names:
        combine(t, names, [f"{entry.prefix}path" for entry in found], places)
    for option, target in (("name", "data.subset"), ("split", "data.split")):
        keys = [entry.prefix + option for entry in found if t.pending(entry.prefix + option)]
        values = {str(entry.get(option, "")) for entry in found}
        for key in keys:
            if len(values) > 1:
                t.lose(key, "all sources have the same one", f"write this source to a file; {target} is one value")
            elif option == "split" and not re.fullmatch(r"\w+", str(t.get(key, "train"))):
                t.lose(key, "part of a split cannot be read", "write these rows to a file")
            elif option == "split" and t.get(key) == "train":
                t.always(key, "it is the default")
            else:
                t.move(key, target)


def _source(t: Translation, entry: Entry, places: Places, target: str = "data.train") -> str | list[str]:
    """The name of a source; a loader such as ``json`` stands for its files."""
    path, files = str(entry.get("path", "")), entry.get("data_files")
    t.translated(f"{entry.prefix}path", target)
    if files is None:
        return places.name(path)
    t.translated(f"{entry.prefix}data_files", target)
    listed = [files] if isinstance(files, str) else list(files)
    if path not in READERS:
        base = path if places.find(path) else f"hf://datasets/{path}"
        listed = [f"{base}/{name}" for name in listed]
    named = [places.name(str(name)) for name in listed]
    return named[0] if len(named) == 1 else named


def evaluation(t: Translation, tests: list[Entry], train: list[Entry], places: Places) -> None:
    """Data sets for evaluation, or a part of the training data."""
    if t.pending("val_set_size") and not tests:
        fraction(t, "val_set_size", [str(name) for name in _flat(_named(train, places))], places)
    elif t.pending("val_set_size"):
        t.always("val_set_size", "test_datasets is used" if t.get("val_set_size") else "it is off")
    names = [_source(t, entry, places, "data.eval") for entry in tests]
    for entry in tests:
        key = f"{entry.prefix}split"
        if t.pending(key) and places.find(entry.get("path")):
            t.always(key, "a file that is named is read whatever its split is")
        elif t.pending(key) and t.get(key) in ("test", "validation"):
            t.translated(key, "data.eval", "the validation split is used if there is one, else the test split")
        elif t.pending(key):
            t.lose(key, "as evaluation data, the validation or test split is used", "write these rows to a file")
        for name in [name for name in entry.values if t.pending(entry.prefix + name)]:
            same = any(entry.values[name] == other.values.get(name) for other in train)
            if same and name in DATASET_RULES:
                t.always(entry.prefix + name, "it is the same as for the training data")
            elif name in DATASET_RULES and entry.values[name] is not None and name != "ds_type":
                t.lose(
                    entry.prefix + name, "evaluation data is read like the training data", "convert it to that format"
                )
    flat = _flat(names)
    if flat:
        t.put("data.eval", flat[0] if len(flat) == 1 else flat, "test_datasets")


def _named(found: list[Entry], places: Places) -> list[str | list[str]]:
    files = [entry.get("data_files") or entry.get("path", "") for entry in found]
    return [places.name(name) if isinstance(name, str) else name for name in files]


def _flat(names: list[str | list[str]]) -> list[str]:
    return [name for item in names for name in (item if isinstance(item, list) else [item])]


def _mixed_kinds(t: Translation, found: list[Entry]) -> None:
    """Formats are recognised source by source, so most may differ; those with a function of their own may not."""
    for entry in found[1:]:
        if entry.kind == "user" or known_prompt(entry.kind):
            for key in [name for name in t.given if name.startswith(f"{entry.prefix}type") and t.pending(name)]:
                t.lose(key, "one run has one formatting function", "convert this source, for instance to conversations")
