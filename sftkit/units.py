"""Quantities for people."""

from __future__ import annotations

UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def size_text(size: float) -> str:
    """A number of bytes with three digits: ``1.23 GB``, ``20.5 MB``, ``312 bytes``. A GB has 10**9 bytes."""
    for factor, unit in UNITS:
        if size >= 0.9995 * factor:
            value = size / factor
            return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {unit}"
    return f"{size:.0f} bytes"
