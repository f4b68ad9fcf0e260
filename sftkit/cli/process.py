"""The process of a command: where it imports from, and what it prints."""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Any

from sftkit.redact import hide
from sftkit.user_modules import keep_out_of_children


def prepare_process() -> None:
    """Secrets are hidden in log lines, and what the terminal cannot show is replaced."""
    keep_out_of_children()
    logging.setLogRecordFactory(_record)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # such as a Windows code page, which lacks most characters
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")


def print_traceback(error: BaseException) -> None:
    """Print the traceback of a bug, without secrets."""
    print(hide("".join(traceback.format_exception(error))), end="", file=sys.stderr)  # noqa: T201


def _record(*arguments: Any, **options: Any) -> logging.LogRecord:
    record = logging.LogRecord(*arguments, **options)
    try:
        text = record.getMessage()
    except Exception:  # the handler reports it
        return record
    if (hidden := hide(text)) != text:
        record.msg, record.args = hidden, ()
    return record
