"""Data sets of the hub, and reading with `datasets` without its progress bars."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from sftkit.errors import DataError, Problem

if TYPE_CHECKING:
    from sftkit.config import DataSection


def read_hub(name: str, data: DataSection, where: str, streaming: bool = False) -> Any:
    """A data set of the hub, as a Dataset or, if ``streaming``, an IterableDataset.

    Raises:
        DataError: if it cannot be loaded.
    """
    try:
        return load_quietly(name, data.subset, split=data.split, streaming=streaming)
    except Exception as error:  # the hub's client raises exceptions of many types
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        fix = "check the name, data.subset, data.split and the network"
        what = f"there is no {os.path.abspath(name)}, and the data set {name!r} of the hub cannot be loaded: {first}"
        raise DataError(Problem(what, where, fix)) from error


def load_quietly(*args: Any, **options: Any) -> Any:
    """`datasets.load_dataset` without progress bars, and without the log of errors that it also raises."""
    import datasets

    logger = logging.getLogger("datasets")
    level, had_bars = logger.level, not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(*args, **options)
    finally:
        logger.setLevel(level)
        if had_bars:
            datasets.enable_progress_bars()
