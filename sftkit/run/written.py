"""What a run has written into its directory: the files that ``--overwrite`` removes, and no others."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from sftkit.checkpoints.choice import NAME, checkpoints, is_saved
from sftkit.checkpoints.manifest import MANIFEST as CONTENTS, STATE
from sftkit.checkpoints.publish import PARTIAL
from sftkit.run.config_file import CONFIG
from sftkit.run.manifest import MANIFEST
from sftkit.run.sample_rows import ROWS

logger = logging.getLogger("sftkit")

LOG = "log.jsonl"
REPORT = "report.html"
REPORT_MARK = '<meta name="generator" content="sftkit report">'
#: What the Trainer and ``save_pretrained`` write into the directory of a model.
MODEL = (
    "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "config.json",
    "generation_config.json", "adapter_model.safetensors", "adapter_config.json", "base_config.json", "README.md",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "additional_chat_templates", "vocab.json", "merges.txt", "vocab.txt", "*.model", "processor_config.json",
    "preprocessor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
#: What else is in a checkpoint, also of several processes.
OTHERS = (
    STATE, "training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state*.pth",
    "pytorch_model_fsdp_*", "optimizer_*", "global_step*", "latest", "zero_to_fp32.py", "zero_to_torch.py",
)  # fmt: skip


def snapshot(directory: Path) -> dict[str, tuple[int, ...]]:
    """The files of a directory outside of checkpoints: by their path in it, what changes when they are written."""
    found: dict[str, tuple[int, ...]] = {}
    for folder, names, files in os.walk(directory):
        here = Path(folder)
        left_out = {name for name in names if NAME.fullmatch(name) or (here / name).is_symlink()} | {PARTIAL}
        names[:] = [name for name in names if name not in left_out]
        for name in files:
            with suppress(OSError):  # removed in the meantime
                known = (here / name).lstat()
                found[(here / name).relative_to(directory).as_posix()] = (
                    known.st_mtime_ns,
                    known.st_size,
                    known.st_ino,
                )
    return found


def remove_run(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Remove what a run has written; its manifest last. Symlinks are removed, and not followed.

    Args:
        directory: the run's directory.
        manifest: the run's. The names in it are only used inside of the directory.
    """
    for path in _checkpoints(directory):
        _remove(path, [entry for entry in path.iterdir() if _matches(entry.name, (*MODEL, *OTHERS, *_listed(path)))])
    reports = {REPORT} if is_report(directory / REPORT) else set()
    for name in {*map(str, manifest["files"]), *map(str, manifest["writes"]), LOG, ROWS, PARTIAL, *reports}:
        if (written := _inside(directory, name)) is not None:
            _remove(written)
            for folder in list(written.parents)[: -len(directory.parents) - 1]:
                with suppress(OSError):  # not empty
                    folder.rmdir()
    if not {*manifest["files"]} - {CONFIG}:  # it ended before it had saved its model, or while it did
        for entry in list(directory.iterdir()):
            if _matches(entry.name, MODEL) and entry.name != "README.md":  # which may be anybody's
                _remove(entry)
    (directory / MANIFEST).unlink()


def is_report(path: Path) -> bool:
    """Whether a file was written by ``sftkit report``."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return REPORT_MARK in file.read(1000)
    except OSError:
        return False


def _checkpoints(directory: Path) -> Iterator[Path]:
    for path in checkpoints(directory).values():
        if is_saved(path):
            yield path


def _listed(checkpoint: Path) -> set[str]:
    """The names at the top of a checkpoint that its manifest lists; none if that cannot be read."""
    try:
        files = json.loads((checkpoint / CONTENTS).read_text(encoding="utf-8"))["files"]
        return {CONTENTS, *(re.sub(r"([*?[])", r"[\1]", PurePosixPath(name).parts[0]) for name in files)}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return {CONTENTS}


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _inside(directory: Path, name: str) -> Path | None:
    """The path of a name in a manifest; None if it, or a symlink in it, leads out of the directory."""
    parts = PurePosixPath(name).parts
    if not parts or any(part in ("/", "..") or ":" in part or "\\" in part for part in parts):
        return None
    path = directory.joinpath(*parts)
    if any(folder.is_symlink() for folder in path.parents if folder != directory and directory in folder.parents):
        return None
    return path


def _remove(path: Path, only: list[Path] | None = None) -> None:
    """Remove a file or a directory with its contents, or only some of them and what is then an empty directory."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for entry in list(path.iterdir()) if only is None else only:
        _remove(entry)
    try:
        path.rmdir()
    except OSError:
        logger.warning("%s is kept: it holds files that are not of the run", path)
