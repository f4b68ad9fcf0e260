"""The manifest of a checkpoint: the files that it is complete with, and what is known of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from sftkit.checkpoints.files import digest, files_in, sync, write_text

MANIFEST = "checkpoint.json"
FORMAT = 1
STATE = "trainer_state.json"
OPTIMIZERS = ("optimizer", "global_step")  # how files or directories of FSDP, DeepSpeed and single processes begin
THREADS = 4  # of them, some wait for the disk while others compute digests


def write(directory: Path, details: Mapping[str, Any]) -> dict[str, Any]:
    """Sync every file of a directory, and write its manifest.

    Args:
        directory: the checkpoint.
        details: further entries: ``step``; ``world_size``, the number of processes; ``ranks``, those that save on this
            disk; ``resumable``; and what else is known.

    Returns:
        The manifest: the details, and of each file its size and digest.

    Raises:
        OSError: if a file cannot be read or written.
    """

    def describe(path: Path) -> dict[str, Any]:
        sync(path)  # the digest is read from the page cache
        return {"size": path.stat().st_size, "xxh3_128": digest(path)}

    paths = [path for path in files_in(directory) if path.name != MANIFEST]
    with ThreadPoolExecutor(THREADS) as pool:
        described = list(pool.map(describe, paths))
    names = [path.relative_to(directory).as_posix() for path in paths]
    manifest = {"format": FORMAT, **details, "files": dict(zip(names, described, strict=True))}
    for parent in {path.parent for path in paths}:
        sync(parent)
    text = json.dumps({**manifest, "digest": _digest_of(manifest)}, indent=2)
    write_text(directory / MANIFEST, text + "\n")
    return manifest


def read(directory: Path, step: int, contents: bool = True) -> tuple[dict[str, Any], str]:
    """The manifest of a checkpoint, and why the checkpoint cannot be resumed: empty if it can.

    Args:
        directory: the checkpoint.
        step: its step, by its name.
        contents: compare the digests of the files too, and not only their sizes.
    """
    try:
        manifest = _load(directory)
        return manifest, _problem(directory, manifest, step, contents)
    except FileNotFoundError:
        return {}, _without_manifest(directory)
    except OSError as error:
        return {}, f"cannot be read: {error}"
    except (ValueError, TypeError, KeyError, AttributeError):  # JSON of another form
        return {}, f"{MANIFEST} is damaged"


def _load(directory: Path) -> dict[str, Any]:
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    if manifest.pop("digest") != _digest_of(manifest):
        raise ValueError(MANIFEST)
    return dict(manifest)


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return str(xxhash.xxh3_128_hexdigest(json.dumps(manifest, sort_keys=True).encode()))


def _without_manifest(directory: Path) -> str:
    names = [path.name for path in directory.iterdir()]
    if not names:
        return "it is empty"
    return f"{MANIFEST} is missing: the checkpoint is incomplete, or was not saved by sftkit"


def _problem(directory: Path, manifest: Mapping[str, Any], step: int, contents: bool) -> str:
    if manifest["format"] != FORMAT:
        return f"{MANIFEST} has format {manifest['format']}, which this version of sftkit does not know"
    if manifest["step"] != step:
        return f"it was renamed: {MANIFEST} is of step {manifest['step']}"
    files: dict[str, dict[str, Any]] = manifest["files"]
    if not manifest["resumable"]:
        return "it cannot be resumed: train.save_only_model keeps no optimizer state"
    if len(manifest["ranks"]) < manifest["world_size"]:
        return "it cannot be resumed: it lacks the states of the processes on machines that do not see this directory"
    alone = manifest["world_size"] == 1
    needed = [STATE, *("rng_state.pth" if alone else f"rng_state_{rank}.pth" for rank in manifest["ranks"])]
    if missing := [name for name in needed if name not in files]:
        return f"{missing[0]} is missing"
    if not any(name.startswith(OPTIMIZERS) for name in files):
        return "the optimizer state is missing"
    outside = [name for name in files if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        return f"{MANIFEST} names a file outside of the checkpoint: {outside[0]}"
    for name, known in files.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != known["size"]:
            return f"{name} has {size:,} bytes instead of {known['size']:,}"
    if not contents:
        return ""
    with ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(digest, [directory / name for name in files])
        damaged = [name for name, found in zip(files, digests, strict=True) if found != files[name]["xxh3_128"]]
    return f"{damaged[0]} is damaged: its contents are not those that were saved" if damaged else ""
