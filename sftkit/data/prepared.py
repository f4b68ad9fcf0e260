"""Data that `sftkit prepare` has written: compared with the run, verified, and mapped into memory."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.data import cache
from sftkit.data.columns import SOURCES
from sftkit.data.counts import Counts
from sftkit.data.dropped import dropped_rows
from sftkit.data.identity import parts_of
from sftkit.data.opening import filesystem_of, is_remote
from sftkit.data.prepare import PreparedData
from sftkit.data.shards import MANIFEST, files_of, parse_manifest
from sftkit.data.stats import DatasetStats
from sftkit.data.store import checksum, open_rows, open_sources
from sftkit.data.tokenizing.use import refutation
from sftkit.errors import ConfigError, DataError, Problem
from sftkit.redact import without_secrets
from sftkit.storage import made

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet

logger = logging.getLogger("sftkit")

WHERE = "data.prepared"
AGAIN = "set it back, or prepare the data again with `sftkit prepare`"
MISSING = "not set"


def open_prepared(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, plugins: PluginSet, processor: Any = None
) -> PreparedData:
    """The data in ``data.prepared``, as if it had been prepared now.

    Args:
        config: the run as resolved.
        tokenizer: the run's tokenizer, with its chat template.
        plugins: the selected plugins.
        processor: the processor that the tokenizer belongs to, if there is one.

    Raises:
        ConfigError: if there is no prepared data, or it was prepared for another run; with each difference.
        DataError: if a file is damaged or cannot be read.
    """
    name = str(config.data.prepared)
    manifest = read_manifest(name)
    splits: dict[str, Any] = manifest["splits"]
    tokenized: dict[str, Any] = manifest.get("tokenizing", {})
    problems = [*_differences(splits, config, tokenizer, plugins, processor), *_refuted(tokenized.values())]
    if problems:
        raise ConfigError(problems)
    directory = _verified(name, manifest)
    paths = {split: [directory / shard["name"] for shard in found["shards"]] for split, found in splits.items()}
    return PreparedData(
        splits={split: open_rows(*files) for split, files in paths.items()},
        counts=Counts({split: Counter(found["counts"]) for split, found in splits.items()}),
        stats={split: DatasetStats.from_dict(found["stats"]) for split, found in splits.items()},
        described={split: found["summary"] for split, found in splits.items()},
        formatted={split: found["columns"] for split, found in splits.items()},
        cached=frozenset(splits),
        dropped={split: dropped_rows(found["dropped"]) for split, found in splits.items()},
        sources={split: open_sources(*files) for split, files in paths.items() if SOURCES in splits[split]["summary"]},
        tokenizing={split: info["tokenizing"] for split, info in tokenized.items()},
    )


def read_manifest(name: str) -> dict[str, Any]:
    """The manifest in a directory or at a URL.

    Raises:
        ConfigError: if there is none.
    """
    try:
        if is_remote(name):
            system, path = filesystem_of(name, WHERE)
            return parse_manifest(system.cat_file(f"{path.rstrip('/')}/{MANIFEST}"), name)
        return parse_manifest((Path(name).expanduser() / MANIFEST).read_bytes(), name)
    except (FileNotFoundError, NotADirectoryError):
        what = f"there is no prepared data in {name}: it has no {MANIFEST}"
        fix = "write it with `sftkit prepare CONFIG --to DIR`, or remove data.prepared"
        raise ConfigError(Problem(what, WHERE, fix)) from None


def _differences(
    splits: Mapping[str, Any],
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    plugins: PluginSet,
    processor: Any,
) -> Iterator[Problem]:
    """What the data was prepared with and the run has not, or has otherwise. The files it was made of are not read."""
    evaluation = config.data.eval
    wanted = {*evaluation} if isinstance(evaluation, Mapping) else {"eval"} if evaluation is not None else set()
    if there := wanted ^ (splits.keys() - {"train"}):
        named = [f"{', '.join(sorted(each)) or 'none'}" for each in (wanted, splits.keys() - {"train"})]
        what = f"the evaluation sets are {named[0]}, and those of the prepared data are {named[1]}"
        yield Problem(what, "data.eval", AGAIN)
    seen: set[Problem] = set()
    for split in splits.keys() - there:
        parts = parts_of(split, [], tokenizer, config, plugins, processor)
        now = json.loads(json.dumps(without_secrets(parts), default=str))
        for problem in _of_parts(splits[split]["parts"], now):
            if problem not in seen:
                seen.add(problem)
                yield problem


def _of_parts(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Problem]:
    for key in sorted({*then["data"], *now["data"]}):
        yield from _changed(f"data.{key}", then["data"].get(key, MISSING), now["data"].get(key, MISSING))
    one, other = then["tokenizer"], now["tokenizer"]
    if one["json"] != other["json"]:
        yield Problem("the data was prepared with another tokenizer", "model.tokenizer", AGAIN)
    if one["chat_template"] != other["chat_template"]:
        yield Problem(_template(one["chat_template"], other["chat_template"]), "the chat template", AGAIN)
    for key in sorted({*one["special"], *other["special"]}):
        yield from _changed(f"the {key}", one["special"].get(key, MISSING), other["special"].get(key, MISSING))
    if then.get("processor") != now.get("processor"):
        yield Problem("the data was prepared with another processor", "model.tokenizer", AGAIN)
    for name in sorted({*then["plugins"], *now["plugins"]}):
        if name not in then["plugins"] or name not in now["plugins"]:
            what = "the data was prepared with it" if name in then["plugins"] else "the data was prepared without it"
            yield Problem(what, f"plugin {name}", AGAIN)
            continue
        before, after = (each["plugins"][name]["options"] for each in (then, now))
        for option in sorted({*before, *after}):
            where = f"plugin {name}, option {option}"
            yield from _changed(where, before.get(option, MISSING), after.get(option, MISSING))
    _warn_of_versions(then, now)


def _refuted(tokenized: Iterable[Mapping[str, Any]]) -> Iterator[Problem]:
    """Engines that have tokenized splits otherwise than `tokenizers`, as was found out since."""
    for why in dict.fromkeys(filter(None, map(refutation, tokenized))):
        what = "the data was tokenized by an engine that does not tokenize as tokenizers does"
        yield Problem(f"{what}: {why}", WHERE, "prepare the data again with `sftkit prepare`")


def _changed(where: str, then: Any, now: Any) -> Iterator[Problem]:
    if then != now:
        yield Problem(f"it is {now!r}, and the data was prepared with {then!r}", where, AGAIN)


def _template(then: str | None, now: str | None) -> str:
    """The first line in which two chat templates differ."""
    if not isinstance(then, str) or not isinstance(now, str):
        return "the data was prepared with another chat template"
    pairs = zip([*then.splitlines(), ""], [*now.splitlines(), ""], strict=False)
    line, (old, new) = next(((at, pair) for at, pair in enumerate(pairs, 1) if pair[0] != pair[1]), (1, (then, now)))
    return f"its line {line} is {new[:80]!r}, and the data was prepared with {old[:80]!r}"


def _warn_of_versions(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Other versions may make other rows, but the data is what the user has chosen."""
    before, after = then["versions"], now["versions"]
    found = [f"{name} {before.get(name)} (now {after[name]})" for name in after if before.get(name) != after[name]]
    if then["code"] != now["code"]:
        found.append("other code of sftkit")
    found += [
        f"other code of plugin {name}"
        for name in then["plugins"].keys() & now["plugins"].keys()
        if then["plugins"][name]["code"] != now["plugins"][name]["code"]
    ]
    if found:
        logger.warning("the data was prepared with %s", ", ".join(found))


def _verified(name: str, manifest: Mapping[str, Any]) -> Path:
    """The directory with the files of a manifest, each compared with its digest by one process of this machine.

    Files of a remote system are first copied into the cache, one by one; those that are there already are kept.
    """
    files, remote = files_of(manifest), is_remote(name)
    key = cache.key_of({"files": files})
    directory = made("prepared") / key if remote else Path(name).expanduser()

    def verify() -> list[Path]:
        for file in files:
            path = directory / file["name"]
            if remote and not _intact(path, file):
                _fetch(name, file, path)
            if not _intact(path, file):
                fix = "copy it again, or prepare the data again with `sftkit prepare`"
                raise DataError(Problem("the file is damaged or missing", f"{WHERE}, {name}/{file['name']}", fix))
        return [directory / file["name"] for file in files]

    if remote:
        directory.mkdir(exist_ok=True)
    cache.once_per_node(f"{key}-prepared", verify)
    return directory


def _intact(path: Path, file: Mapping[str, Any]) -> bool:
    try:
        return path.stat().st_size == file["bytes"] and checksum(path) == file["digest"]
    except OSError:
        return False


def _fetch(name: str, file: Mapping[str, Any], path: Path) -> None:
    """Copy a remote file.

    Raises:
        DataError: if it cannot be read.
    """
    system, root = filesystem_of(name, WHERE)
    partial = path.with_name(f"{path.name}.{cache.node_name()}.partial")
    try:
        system.get_file(f"{root.rstrip('/')}/{file['name']}", str(partial))
    except Exception as error:  # each file system has its own
        first = (str(error).splitlines() or [""])[0] or type(error).__name__
        fix = "check the URL, the network, your credentials and the disk"
        raise DataError(Problem(f"cannot copy {file['name']}: {first}", f"{WHERE}, {name}", fix)) from error
    partial.replace(path)
