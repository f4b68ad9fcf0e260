"""Garbage collections that leave out the objects of large libraries."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected(freeze: bool = False) -> Iterator[None]:
    """Nothing is collected inside, where libraries are imported.

    Torch and transformers make a million objects, of which none is garbage. Collections while they are imported take a
    fifth of the time, and each full one later takes 0.3 s.

    Args:
        freeze: whether later collections leave out all objects that exist at the end, as a process may that imports
            libraries before it does anything else.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    frozen = gc.get_freeze_count()
    try:
        yield
    finally:
        gc.freeze()  # moves them out of the youngest generation, which the next collection would go through
        if freeze:
            atexit.register(gc.unfreeze)  # modules of triton report what is left at the end as leaks
        elif not frozen:
            gc.unfreeze()
        gc.enable()


@contextmanager
def without_libraries() -> Iterator[None]:
    """Collections inside leave out the objects that exist already, such as those of libraries.

    What was frozen before stays so.
    """
    frozen = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()
