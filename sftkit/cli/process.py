"""The process of a command: where it imports from, and what it prints."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sftkit.cli.libraries import quiet_libraries
from sftkit.console import Output, console, is_live, new_console, output
from sftkit.errors import OF_ONE_PROCESS
from sftkit.ranks import number
from sftkit.redact import hide
from sftkit.user_modules import keep_out_of_children


def prepare_process() -> None:
    """Secrets are hidden in log lines, and what the terminal cannot show is replaced."""
    keep_out_of_children()
    logging.setLogRecordFactory(_record)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # such as a Windows code page, which lacks most characters
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")


#: Libraries that set the level of their loggers, from a variable when they are imported.
_LIBRARIES = {
    "transformers": "TRANSFORMERS_VERBOSITY",
    "datasets": "DATASETS_VERBOSITY",
    "huggingface_hub": "HF_HUB_VERBOSITY",
}


def show_log_lines() -> None:
    """Plain lines for warnings and sftkit's own messages, instead of the progress bars of libraries."""
    logging.basicConfig(level=output().library_level, format="%(message)s", handlers=[LineHandler()])
    logging.getLogger("sftkit").setLevel(output().own_level)
    # Set here, since the configuration is checked before transformers is imported.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    quiet_libraries()


def leave_lines_to_main_process() -> None:
    """Log no warning that the main process logs as well; those of one process (`OF_ONE_PROCESS`) are shown."""
    own = logging.getLogger("sftkit")
    logging.getLogger(OF_ONE_PROCESS).setLevel(max(own.getEffectiveLevel(), logging.WARNING))
    own.setLevel(logging.ERROR)


@contextmanager
def log_levels(shown: Output) -> Iterator[None]:
    """The log levels that a command was asked for, while it runs; without a request, those of `show_log_lines`."""
    levels = {"": shown.library_level, "sftkit": shown.own_level, OF_ONE_PROCESS: logging.NOTSET}
    variables = dict[str, str | None]()
    if shown.quiet or shown.verbose or shown.log_level:
        levels |= dict.fromkeys(_LIBRARIES, shown.library_level)
        variables = {name: os.environ.get(name) for name in _LIBRARIES.values()}
    before = {name: logging.getLogger(name).level for name in levels}
    show_log_lines()
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    os.environ.update(dict.fromkeys(variables, logging.getLevelName(shown.library_level).lower()))
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
        for name, value in variables.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


class LineHandler(logging.StreamHandler):
    """Writes to ``sys.stderr`` as it is when a line is logged; in a terminal above the live line, wrapped at spaces."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        rank = number("RANK", 0) if record.name == OF_ONE_PROCESS else 0
        return f"process {rank}: {text}" if rank else text

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        if not self.stream.isatty():
            super().emit(record)
            return
        style = "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else ""
        (console() if is_live() else new_console(stderr=True)).print(self.format(record), style=style, markup=False)


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
