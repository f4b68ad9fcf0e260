"""The process of a command: where it imports from, and what it prints."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Any

from sftkit.cli.libraries import quiet_libraries
from sftkit.redact import hide
from sftkit.user_modules import keep_out_of_children


def prepare_process() -> None:
    """Secrets are hidden in log lines, and what the terminal cannot show is replaced."""
    keep_out_of_children()
    logging.setLogRecordFactory(_record)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # such as a Windows code page, which lacks most characters
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")


def show_log_lines() -> None:
    """Plain lines for warnings and sftkit's own messages, instead of the progress bars of libraries."""
    from sftkit.run.distributed import is_main_process

    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_StandardError()])
    logging.getLogger("sftkit").setLevel(logging.INFO)
    # Set here, since the configuration is checked before transformers is imported.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not is_main_process():
        logging.getLogger("sftkit").setLevel(logging.WARNING)  # the main process says the same
    quiet_libraries()


class _StandardError(logging.StreamHandler):
    """Writes to ``sys.stderr`` as it is when a line is logged: a live line of progress takes its place for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


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
