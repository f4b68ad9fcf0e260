"""Attributes with another value for a while, where a library reads an attribute and takes no argument instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ABSENT = object()


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """The owner's attribute has ``value`` inside the context, and its former value after it.

    Args:
        owner: an object with attributes of its own.
        name: the attribute; if the owner's class defines it, the owner has none of its own again after the context.
        value: its value meanwhile.
    """
    before = vars(owner).get(name, _ABSENT)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
