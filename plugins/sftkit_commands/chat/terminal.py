"""Reads what the user writes: several lines, with a history that later chats share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sftkit.api import ConfigError, requirement_problem
from sftkit_commands.chat.commands import NAMES

REQUIRED = "prompt_toolkit>=3"
HISTORY = "chat_history"


def state_directory() -> Path | None:
    """Where the history is kept: ``sftkit`` in the user's state directory; None if there is no home directory."""
    try:
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        else:
            base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    except RuntimeError:
        return None
    return base / "sftkit"


def check_terminal() -> None:
    """Raises:
    ConfigError: if prompt_toolkit is missing.
    """
    if problem := requirement_problem(REQUIRED, "sftkit chat"):
        raise ConfigError(problem)


def make_reader(**options: Any) -> Callable[[], str]:
    """A function that reads what the user writes.

    Args:
        options: further arguments of `prompt_toolkit.PromptSession`.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.formatted_text import HTML

    session: PromptSession[str] = PromptSession(
        HTML("<b>&gt; </b>"),
        multiline=True,
        prompt_continuation="  ",
        history=_history(),
        key_bindings=_keys(),
        completer=WordCompleter(NAMES, sentence=True),
        complete_while_typing=Condition(lambda: session.default_buffer.text.startswith("/")),
        reserve_space_for_menu=0,
        **options,
    )
    return session.prompt


def _history() -> Any:
    """The history of all chats; only of this one where no file can be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    directory = state_directory()
    try:
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            file = directory / HISTORY
            file.touch(mode=0o600)
            return FileHistory(str(file))
    except OSError:
        pass
    return InMemoryHistory()


def _keys() -> Any:
    """Enter sends, unless a backslash ends the line; Alt+Enter and Ctrl-J begin a new line."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return keys
