"""Names and values of metrics, for people."""

from __future__ import annotations

import re
from typing import Any

_SHARE = re.compile(r"(^|_)(accuracy|match|exact|share|fraction)($|_)")


def metric_name(name: str) -> str:
    """The name of a metric in words: ``eval_token_accuracy`` is ``eval token accuracy``."""
    return name.replace("_", " ").strip()


def metric_value(name: str, value: Any) -> str:
    """The value of a metric: shares in percent, losses with four decimals, large numbers with thousands separators."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if _SHARE.search(name) and 0 <= value <= 1:
        return f"{value:.1%}"
    return number(value)


def number(value: float) -> str:
    """A number with about as many digits as say something."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.1f}"
    return f"{value:.4f}" if size >= 0.001 or not size else f"{value:.2e}"


def clock(seconds: float) -> str:
    """A duration, such as ``1:02:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
