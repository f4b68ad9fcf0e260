"""The chat in the terminal: reads lines, does what commands say, and shows answers."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from sftkit.api import ConfigError, Problem, SftkitError, nearest, parse_assignment
from sftkit_commands.chat.conversation import Conversation, save_rows
from sftkit_commands.chat.forms import ChatForm
from sftkit_commands.chat.settings import BOUNDS, Sampling, checked, setting_named, unknown_setting
from sftkit_commands.chat.show import WIDE, Writer, note, show_end, show_help, side_by_side
from sftkit_commands.chat.speaker import Answer, Speaker

HELP = {
    "/system TEXT": "start a new conversation with this system message; without TEXT: with none",
    "/reset": "start a new conversation with the same system message",
    "/retry": "answer the last question again",
    "/undo": "remove the last question and its answer",
    "/set NAME=VALUE": f"change {', '.join(BOUNDS)}, or a variable of the chat template; alone: show them",
    "/save FILE": "append the conversation to a JSON Lines file that sftkit can train on",
    "/help": "show this",
    "/quit": "leave the chat, as Ctrl-D does",
}
KEYS = "Enter sends; Alt+Enter, Ctrl-J or a \\ at the end of a line starts a new line; Ctrl-C stops an answer"
NAMES = [line.partition(" ")[0] for line in HELP]


class Chat:
    """A conversation with one model, or with two that get the same questions.

    Args:
        speakers: the models; the first one is that of the run.
        sampling: how they choose tokens.
        screen: the terminal.
        system: the system message; empty for none.
    """

    def __init__(self, speakers: list[Speaker], sampling: Sampling, screen: Console, system: str = "") -> None:
        self.speakers, self.sampling, self.screen = speakers, sampling, screen
        self.conversation = Conversation(system)

    def run(self, read: Callable[[], str]) -> None:
        """Read and answer until the user leaves.

        Args:
            read: returns what the user has written; raises EOFError if the user leaves, KeyboardInterrupt for Ctrl-C.
        """
        while True:
            try:
                text = read()
            except KeyboardInterrupt:
                note(self.screen, "Ctrl-D or /quit leaves the chat")
                continue
            except EOFError:
                return
            if not text.strip():
                continue
            try:
                if text.startswith("/"):
                    if self._command(*text.strip().partition(" ")[::2]):
                        return
                else:
                    self._ask(text)
            except SftkitError as error:
                for problem in error.problems:
                    note(self.screen, f"error: {problem}", "red")

    def _command(self, name: str, rest: str) -> bool:
        """Do what a command says; returns whether the user leaves.

        Raises:
            ConfigError: for a command that does not exist or does not fit.
        """
        rest = rest.strip()
        does: dict[str, Callable[[str], None]] = {
            "/system": self._set_system,
            "/reset": self._reset,
            "/retry": self._retry,
            "/undo": self._undo,
            "/set": self._set,
            "/save": self._save,
            "/help": self._help,
        }
        if name == "/quit":
            return True
        if name not in does:
            fix = nearest(name, NAMES) or "/help lists them; start a message with a space to send it as it is"
            raise ConfigError(Problem(f"there is no command {name}", "chat", fix))
        does[name](rest)
        return False

    def _set_system(self, text: str) -> None:
        if text and not self.speakers[0].form.remembers:
            raise ConfigError(no_system(self.speakers[0]))
        self.conversation.reset()
        self.conversation.system = text
        note(self.screen, f"new conversation {'with this' if text else 'without a'} system message")

    def _reset(self, _: str) -> None:
        self.conversation.reset()
        note(self.screen, "new conversation")

    def _retry(self, _: str) -> None:
        if (question := self.conversation.undo()) is None:
            raise ConfigError(Problem("there is no question yet", "/retry", "write one"))
        note(self.screen, f"> {question}")
        self._ask(question)

    def _undo(self, _: str) -> None:
        if (question := self.conversation.undo()) is None:
            raise ConfigError(Problem("there is no question to remove", "/undo", "write one"))
        note(self.screen, f"removed: {question}")

    def _set(self, text: str) -> None:
        if not text:
            note(self.screen, f"sampling: {self.sampling}")
            for name in dict.fromkeys(speaker.form.name for speaker in self.speakers):
                note(self.screen, f"prompts: {name}")
            return
        name, value = parse_assignment(text, "/set")
        if (setting := setting_named(name)) is not None:
            self.sampling = self.sampling.with_values(checked({setting: value}, "/set"))
        else:
            forms = [speaker.form for speaker in self.speakers if isinstance(speaker.form, ChatForm)]
            known = {each for form in forms for each in form.known_variables()}
            if name not in known:
                raise unknown_setting(name, known, "/set")
            for form in forms:
                form.variables[name] = value
        self._set("")

    def _save(self, text: str) -> None:
        if not text:
            raise ConfigError(Problem("no file is named", "/save", "write /save chats.jsonl"))
        if not self.conversation.turns:
            raise ConfigError(Problem("there is no answer yet", "/save", "write a question first"))
        rows = self.speakers[0].form.rows(self.conversation.messages())
        path = Path(text).expanduser()
        save_rows(path, rows)
        note(self.screen, f"{len(rows)} {'row' if len(rows) == 1 else 'rows'} appended to {path}")

    def _help(self, _: str) -> None:
        show_help(self.screen, HELP)
        note(self.screen, KEYS)

    def _ask(self, question: str) -> None:
        self.conversation.ask(question)
        try:
            with interruptible() as stop:
                answers = self._answers(stop)
        except SftkitError:
            self.conversation.undo()
            raise
        self.conversation.answered([answer.text for answer in answers])

    def _answers(self, stop: Callable[[], bool]) -> list[Answer]:
        wide = len(self.speakers) > 1 and self.screen.width >= WIDE
        answers = []
        for number, speaker in enumerate(self.speakers):
            messages = self._messages(number)
            if wide:
                with self.screen.status(f"{speaker.name} answers ..."):
                    answers.append(speaker.answer(messages, self.sampling, lambda _: None, stop))
                continue
            if len(self.speakers) > 1:
                note(self.screen, f"{speaker.name}:", "bold")
            writer = Writer(self.screen)
            answer = speaker.answer(messages, self.sampling, writer.write, stop)
            writer.end()
            show_end(self.screen, answer)
            answers.append(answer)
        if wide:
            names = [speaker.name for speaker in self.speakers]
            side_by_side(self.screen, dict(zip(names, answers, strict=True)))
        self.screen.print()
        return answers

    def _messages(self, number: int) -> list[dict[str, Any]]:
        messages = self.conversation.messages(number)
        return messages if self.speakers[number].form.remembers else messages[-1:]


def no_system(speaker: Speaker) -> Problem:
    """The problem with a system message for a model that knows none."""
    what = f"the model takes no system message: prompts are {speaker.form.name}"
    return Problem(what, "system message", "write it in front of the prompt, or use --format chat")


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C ends the answer after the token that is being computed, and a second Ctrl-C at once."""
    pressed: list[int] = []

    def note_it(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note_it)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
