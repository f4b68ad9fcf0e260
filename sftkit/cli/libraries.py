"""Lines of libraries that the user of a command cannot act on; shown if the log level is below WARNING, as with -v."""

from __future__ import annotations

import logging
import os
import re
import warnings
from typing import Any

#: Categories in which a library speaks to the developers of what calls it.
FOR_DEVELOPERS = (FutureWarning, DeprecationWarning, PendingDeprecationWarning)
#: Log lines: the logger, and how they begin.
LINES = (
    ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward"),  # of a kernel that is optional
    ("DeepSpeed", "Setting accelerator to CPU"),  # accelerate imports it wherever it is installed
)
_PACKAGE = re.compile(r"[\\/](?:site|dist)-packages[\\/](\w+)")


def quiet_libraries() -> None:
    """Drop these lines. Everything else arrives: other warnings, and deprecations in the user's own modules."""
    if not isinstance(warnings.showwarning, _Shown):
        warnings.showwarning = _Shown(warnings.showwarning)
    for name, begins in LINES:
        logger = logging.getLogger(name)
        if not any(isinstance(each, _NotBeginning) for each in logger.filters):
            logger.addFilter(_NotBeginning(begins))
    if _quiet():  # read when torch is imported; such as what its reducer logs about unused parameters
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _quiet() -> bool:
    return logging.getLogger().getEffectiveLevel() >= logging.WARNING


class _Shown:
    """Takes the place of `warnings.showwarning`."""

    def __init__(self, show: Any) -> None:
        self._show = show

    def __call__(self, message: Any, category: type[Warning], filename: str, *rest: Any, **named: Any) -> None:
        package = found[1] if (found := _PACKAGE.search(filename)) else ""
        if not (package and issubclass(category, FOR_DEVELOPERS) and _quiet()):
            self._show(message, category, filename, *rest, **named)


class _NotBeginning(logging.Filter):
    """Drops records whose message begins with a text, unless more is logged than usual."""

    def __init__(self, begins: str) -> None:
        super().__init__()
        self._begins = begins

    def filter(self, record: logging.LogRecord) -> bool:
        return not (_quiet() and record.getMessage().startswith(self._begins))
