"""Makes a written directory visible under its name, and removes what is no longer needed.

Whatever is not complete, or is being removed, is in the directory `PARTIAL` of the run. So a directory that is named
like a checkpoint is whole at any moment.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sftkit.checkpoints.choice import checkpoints, is_saved
from sftkit.checkpoints.files import files_in, partial_of, sync
from sftkit.checkpoints.manifest import MANIFEST
from sftkit.errors import ConfigError, Problem

PARTIAL = "_partial"  # uploads to the hub leave out names that begin with an underscore


def tidy(run: Path) -> None:
    """Remove what an interrupted run has left."""
    shutil.rmtree(run / PARTIAL, ignore_errors=True)


def discard(partial: Path) -> None:
    """Remove an incomplete directory, and `PARTIAL` if nothing else is in it."""
    shutil.rmtree(partial, ignore_errors=True)
    if partial.parent.is_dir() and not any(partial.parent.iterdir()):
        partial.parent.rmdir()


def publish(partial: Path, final: Path) -> None:
    """Rename a complete directory to its name; one that is there already is replaced."""
    old = partial.with_name(f"replaced-{final.name}")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    partial.rename(final)
    sync(final.parent)
    discard(old)


@contextmanager
def new_directory(directory: Path, where: str = "") -> Iterator[Path]:
    """A directory beside ``directory``, which gets its name if the body ends without an exception, and else is removed.

    Args:
        directory: one that does not exist, or is empty.
        where: the place that an error names, such as an option.

    Raises:
        ConfigError: if something is in it already, or it cannot be written.
    """
    if problem := _occupied(directory, where or str(directory)):
        raise ConfigError(problem)
    partial = partial_of(directory)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        what = f"the directory cannot be written: {error.strerror}"
        raise ConfigError(Problem(what, str(directory), "choose another directory")) from error
    try:
        yield partial
        for path in files_in(partial):
            sync(path)
        if directory.is_dir():
            directory.rmdir()
        partial.rename(directory)
        sync(directory.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _occupied(directory: Path, where: str) -> Problem | None:
    fix = "choose another directory, or remove it first"
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        return Problem(f"{str(directory)!r} is not a directory", where, fix)
    if directory.is_dir() and any(directory.iterdir()):
        return Problem(f"the directory {str(directory)!r} is not empty", where, fix)
    return None


def replace_files(partial: Path, directory: Path) -> None:
    """Move each file of a directory to its place in another one; files that are mapped or open keep their contents."""
    for path in files_in(partial):
        sync(path)
        target = directory / path.relative_to(partial)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    sync(directory)
    discard(partial)


def rotate(run: Path, limit: int | None, newest: Path, best: Path | None) -> None:
    """Remove the oldest checkpoints of a run, those without a manifest first; other directories are kept.

    Args:
        run: the directory of the run.
        limit: number of checkpoints to keep; None to keep all.
        newest: the checkpoint that was saved last; it is kept.
        best: the checkpoint of the best model; it is kept.
    """
    if not limit:
        return
    kept = {path.resolve() for path in (newest, best) if path is not None}
    there = [path for path in checkpoints(run).values() if is_saved(path)]
    removable = [path for path in there if path.resolve() not in kept]
    removable.sort(key=lambda path: (path / MANIFEST).is_file())  # stable: by step within both
    for path in removable[: max(len(there) - limit, 0)]:
        removed = run / PARTIAL / f"removed-{path.name}"
        removed.parent.mkdir(exist_ok=True)
        shutil.rmtree(removed, ignore_errors=True)
        path.rename(removed)  # at once, and not file by file
        discard(removed)
