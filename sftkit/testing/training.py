"""Runs of a tiny model."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.testing.rows import sample_rows
from sftkit.testing.tiny import CHATML, tiny_model, tiny_tokenizer

if TYPE_CHECKING:
    from sftkit.plugin.base import Plugin
    from sftkit.run.result import RunResult


def train_tiny(
    directory: Path,
    plugins: Iterable[str | Plugin] = (),
    rows: list[dict[str, Any]] | None = None,
    *,
    model: Any = None,
    train: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> RunResult:
    """Train a tiny model for two steps on the CPU.

    Args:
        directory: where runs are; each has a new directory in it.
        plugins: those of the run.
        rows: training rows; those of the format ``messages`` by default.
        model: another model, as for `Pipeline`.
        train: further fields of the section ``train``.
        arguments: further arguments of `Pipeline`.

    Raises:
        SftkitError: as of `Pipeline.run`.
    """
    from sftkit.run.pipeline import Pipeline

    number = sum(1 for _ in directory.glob("run-*")) + 1
    steps = {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none"}
    fields = {**steps, "output_dir": str(directory / f"run-{number}"), **(train or {})}
    data = sample_rows("messages") if rows is None else rows
    if model is not None and not isinstance(model, str | Path):  # a loaded model has no tokenizer
        arguments.setdefault("tokenizer", str(tiny_directory()))
    chosen = str(tiny_directory()) if model is None else model
    return Pipeline(model=chosen, data=data, plugins=plugins, train=fields, **arguments).run()


@functools.cache
def tiny_directory() -> Path:
    """A directory with a tiny model and its tokenizer, which is removed when the process ends."""
    path = Path(tempfile.mkdtemp(prefix="sftkit-tiny-"))
    atexit.register(_remove, path, os.getpid())
    tiny_model().save_pretrained(path)
    tiny_tokenizer(chat_template=CHATML).save_pretrained(path)
    return path


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # and not in a process that was forked from it
        shutil.rmtree(path, ignore_errors=True)
