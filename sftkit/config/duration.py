"""Durations in configurations."""

from __future__ import annotations

import re
from typing import Any

#: ``1d2h30m15s`` with any of the units, or ``[days-]hours:minutes:seconds`` as in Slurm.
PATTERN = r"^\s*(?=\S)((\d+)d)?((\d+)h)?((\d+)m)?((\d+)s)?\s*$|^\s*((\d+)-)?(\d+):(\d\d):(\d\d)\s*$"
_UNITS = (86400, 3600, 60, 1)


def as_seconds(value: Any) -> Any:
    """The seconds of a text such as ``2h30m`` or ``11:30:00``; any other value is returned as it is."""
    if not isinstance(value, str) or not (found := re.match(PATTERN, value)):
        return value
    units, clock = found.group(2, 4, 6, 8), found.group(10, 11, 12, 13)
    return sum(int(number or 0) * unit for number, unit in zip(clock if found[11] else units, _UNITS, strict=True))
