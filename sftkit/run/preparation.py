"""Data prepared for later runs: written into a directory, or to a remote file system."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.checkpoints.publish import new_directory
from sftkit.console import stage
from sftkit.errors import ConfigError, Problem, RunError

if TYPE_CHECKING:
    from sftkit.data.pool import Pool
    from sftkit.data.prepare import PreparedData
    from sftkit.run.pipeline import Pipeline

logger = logging.getLogger("sftkit")
WHERE = "--to"


def prepare_to(pipeline: Pipeline, to: str, workers: int | Pool = 0) -> dict[str, Any]:
    """Prepare the data of a run, and write it where later runs find it with ``data.prepared``.

    The directory is complete or absent. If it has the same data already, it is kept. What an interrupted call has
    prepared is in the cache, so that another one only writes it.

    Args:
        pipeline: the run; no weights are read.
        to: a directory, or the URL of one.
        workers: the number of processes that prepare, 0 for one per processor; or a pool. One is this process. The
            result is the same.

    Returns:
        The manifest that was written.

    Raises:
        ConfigError: every problem of the configuration, or if something else is in the directory.
        DataError: if the data cannot be used.
        RunError: if a worker dies, or the directory cannot be written.
    """
    from sftkit.data.pool import Pool
    from sftkit.data.processes import processors, worker_processes
    from sftkit.data.threads import SameThread

    if isinstance(workers, Pool):
        return _prepare_to(pipeline, to, workers)
    number = workers or processors()
    if number == 1:
        return _prepare_to(pipeline, to, Pool(SameThread(), 1))
    with worker_processes(number) as executor:
        return _prepare_to(pipeline, to, Pool(executor, number))


def _prepare_to(pipeline: Pipeline, to: str, pool: Pool) -> dict[str, Any]:
    from sftkit.data.opening import is_remote

    stages = pipeline.stages()
    if problems := list(_unfit(stages.config.data)):
        raise ConfigError(problems)
    stage("loading the tokenizer")
    vocabulary = stages.load_tokenizer()
    remote = is_remote(to)
    there = _there(to)
    if there is None and not remote:
        with new_directory(Path(to).expanduser(), WHERE) as directory:
            stage("preparing the data")
            data = stages.prepare_data(vocabulary.tokenizer, vocabulary.processor, pool)
            return _write(data, directory)
    stage("preparing the data")
    data = stages.prepare_data(vocabulary.tokenizer, vocabulary.processor, pool)
    with _scratch() as directory:
        manifest = _write(data, directory)
        if there is not None:
            if _content(there) == _content(manifest):
                logger.info("%s has this data already, and is kept", to)
                return there
            what = f"{to} has other prepared data"
            raise ConfigError(Problem(what, WHERE, "choose another directory, or remove it first"))
        _upload(directory, to, manifest)
    return manifest


def _unfit(data: Any) -> Iterator[Problem]:
    if data.streaming:
        what = "a stream is prepared while it is read, and not before"
        yield Problem(what, "data.streaming", "set data.streaming=false: prepared rows are mapped from disk")
    if data.prepared is not None:
        yield Problem("the data is prepared already", "data.prepared", "remove data.prepared to prepare it again")


def _there(to: str) -> dict[str, Any] | None:
    """The manifest of what is there; None if there is none."""
    from sftkit.data.prepared import read_manifest

    try:
        return read_manifest(to)
    except ConfigError:
        return None


def _content(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in manifest.items() if name not in ("created", "tokenizing")}


def _write(data: PreparedData, directory: Path) -> dict[str, Any]:
    """Write the shards and the manifest of prepared data."""
    import sftkit
    from sftkit.data.shards import FORMAT, MANIFEST, file_names, write_split

    stage("writing the shards")
    splits: dict[str, Any] = {}
    for split, name in file_names(data.entries).items():
        entry = data.entries[split]
        known = {key: entry.info[key] for key in ("summary", "counts", "stats", "columns", "parts", "dropped")}
        splits[split] = {**write_split(entry.rows, directory, name), **known}
    manifest = {"format": FORMAT, "sftkit": sftkit.__version__, "created": time.time(), "splits": splits}
    manifest["tokenizing"] = {
        split: {key: entry.info[key] for key in ("tokenizing", "proof")}
        for split, entry in data.entries.items()
        if "proof" in entry.info
    }
    text = json.dumps(manifest, default=str, indent=1)
    (directory / MANIFEST).write_text(f"{text}\n", encoding="utf-8")
    read: dict[str, Any] = json.loads(text)
    return read


@contextmanager
def _scratch() -> Iterator[Path]:
    from sftkit.data.cache import Scratch

    scratch = Scratch()
    yield scratch.path


def _upload(directory: Path, to: str, manifest: Mapping[str, Any]) -> None:
    """Copy the files to a remote file system, the manifest last: without it, there is no prepared data."""
    from sftkit.data.opening import filesystem_of
    from sftkit.data.shards import MANIFEST, files_of

    stage("copying the shards")
    system, path = filesystem_of(to, WHERE)
    root = path.rstrip("/")
    try:
        system.makedirs(root, exist_ok=True)
        for name in (*(file["name"] for file in files_of(manifest)), MANIFEST):
            system.put_file(str(directory / name), f"{root}/{name}")
    except Exception as error:  # each file system has its own
        first = (str(error).splitlines() or [""])[0] or type(error).__name__
        fix = "check the URL, the network and your credentials; the data is in the cache, so that only copying is left"
        raise RunError(Problem(f"cannot write to {to}: {first}", WHERE, fix)) from error
