"""The terminal of this process: its console, and the one line at its bottom that is drawn again and again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from sftkit.console.output import output
from sftkit.console.text import visible, wrapped

_live: Live | None = None
#: Whether stages are printed as lines where there is no terminal, and whether nothing is printed at all.
_lines, _hidden = False, False


class Screen(Console):
    """A console that wraps text at spaces in a terminal, and never inside a word, such as a path.

    Without a terminal, lines are as long as they are.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as `rich.console.Console.print`."""
        if len(objects) != 1 or not isinstance(objects[0], str | Text):
            super().print(*objects, **options)
            return
        if isinstance(objects[0], str):
            text = self.render_str(visible(objects[0]), markup=options.get("markup"), highlight=False)
        else:
            text = objects[0].copy()
            text.plain = visible(text.plain)
        if self.soft_wrap or any(name in options for name in ("overflow", "no_wrap", "soft_wrap", "justify")):
            super().print(text, **options)
            return
        super().print(wrapped(text, self.width), **{**options, "no_wrap": True, "overflow": "ignore", "crop": False})


def console() -> Console:
    """The console for progress and results: without colours if it is not a terminal.

    It is standard output, or standard error where ``--json`` reserves standard output for an object.
    """
    return _live.console if _live is not None else new_console(stderr=output().json, quiet=_hidden)


def new_console(stderr: bool = False, quiet: bool = False) -> Screen:
    """A console of its own, which knows of no live line; a quiet one prints nothing."""
    made = Screen(stderr=stderr, quiet=quiet, highlight=False)
    made.soft_wrap = not made.is_terminal
    return made


def is_live() -> bool:
    """Whether there is a live line now."""
    return _live is not None


def show_live(line: RenderableType) -> bool:
    """Show a live line in place of the one that is there; False where there is no terminal for it."""
    global _live
    if _live is not None:
        _live.update(line, refresh=True)
        return True
    screen = console()
    if output().quiet or not (screen.is_interactive and screen.file.isatty()):
        return False
    # What else is written to the terminal goes above the line; what goes elsewhere is left alone.
    out, err = _is_terminal(sys.stdout), _is_terminal(sys.stderr)
    started = Live(line, console=screen, refresh_per_second=8, transient=True, redirect_stdout=out, redirect_stderr=err)
    started.start(refresh=True)
    _live = started
    return True


def end_live() -> None:
    """Remove the live line."""
    global _live
    if _live is not None:
        ended, _live = _live, None
        ended.stop()


def stage(text: str) -> None:
    """Show what is being done now, within `working`; otherwise nothing."""
    if _live is not None:
        show_live(_spinner(text))
    elif _lines:
        console().print(text, markup=False)


@contextmanager
def working(text: str, quiet: bool = False, lines: bool = False) -> Iterator[None]:
    """Show in a terminal that something is being done: a spinner and a text.

    `stage` changes the text. At the end the spinner is removed, or that of the block around shown again. With
    ``--quiet``, `console` prints nothing meanwhile either: results are printed after the work.

    Args:
        text: what is being done.
        quiet: show nothing, as in every process but the first.
        lines: without a terminal, print the texts as lines; blocks inside do so too.
    """
    global _lines, _hidden
    before, line = (_lines, _hidden), _live.get_renderable() if _live is not None else None
    quiet = quiet or _hidden or output().quiet
    if not quiet and not show_live(_spinner(text)) and (lines or _lines):
        console().print(text, markup=False)
    _lines, _hidden = (lines or _lines) and not quiet, quiet
    try:
        yield
    finally:
        _lines, _hidden = before
        if line is None:
            end_live()
        else:
            show_live(line)


def _spinner(text: str) -> Spinner:
    return Spinner("dots", Text(text, no_wrap=True, overflow="ellipsis"), style="cyan")


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()
