"""One call of the command: an answer to one prompt, or a chat."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sftkit.api import ConfigError, Problem, parse_assignment, printing_json, show_json
from sftkit_commands.chat.settings import checked

if TYPE_CHECKING:
    from sftkit_commands.chat.settings import Sampling
    from sftkit_commands.chat.speaker import Answer, Speaker


@dataclass(frozen=True)
class Request:
    """What the command was asked for.

    Attributes:
        model: the name of the model; empty for that of the newest run.
        prompt: the only prompt; empty to read it, or to chat.
        system: the system message; empty for none.
        compare: the name of the model to compare with; empty for none.
        sampling: the options for sampling; None where one is not given.
        loading: the arguments of `sftkit_commands.chat.opening.Loading`.
        prompting: the form of prompts, and ``NAME=VALUE`` for variables of the chat template.
        seed: of sampled answers.
        as_json: whether one JSON object is printed.
    """

    model: str
    prompt: str
    system: str
    compare: str
    sampling: dict[str, Any]
    loading: dict[str, Any]
    prompting: dict[str, Any]
    seed: int | None
    as_json: bool


def hold(request: Request) -> None:
    """Answer one prompt, or chat if there is none and the command runs in a terminal.

    Raises:
        ConfigError: for what the user can fix.
    """
    values = checked(request.sampling, "--{}")
    chats = not request.prompt and sys.stdin.isatty()
    if chats:
        from sftkit_commands.chat.terminal import check_terminal

        if request.as_json or not sys.stdout.isatty():
            what = "there is no prompt" if request.as_json else "the output is not a terminal, which the chat needs"
            raise ConfigError(Problem(what, "sftkit chat", "use --prompt TEXT, or pipe a prompt into the command"))
        check_terminal()
    question = request.prompt if request.prompt or chats else sys.stdin.read().strip("\r\n")
    empty = ConfigError(Problem("the prompt is empty", "standard input", "pipe a prompt in, or use --prompt TEXT"))
    answerable = chats or bool(question.strip())
    if not answerable and (not request.model or Path(request.model).exists()):
        raise empty
    with printing_json(request.as_json):
        speakers, sampling = _opened(request, values)  # a model that is not there comes before its prompt
    if not answerable:
        raise empty
    if request.system and not speakers[0].form.remembers:
        from sftkit_commands.chat.commands import no_system

        raise ConfigError(no_system(speakers[0]))
    if chats:
        _chat(speakers, sampling, request.system)
    else:
        _answer(speakers, sampling, request, question)


def _opened(request: Request, values: dict[str, float | int]) -> tuple[list[Speaker], Sampling]:
    """The models; what happens meanwhile is shown on standard error."""
    from rich.console import Console

    screen = Console(stderr=True, highlight=False)
    variables = dict(parse_assignment(item, "--template-option") for item in request.prompting["variables"])
    with screen.status("loading transformers ..."):
        import torch
        from transformers.utils import logging

        from sftkit_commands.chat.opening import Loading, Prompting, newest_run, open_speakers
        from sftkit_commands.chat.settings import sampling_of
    name = request.model or newest_run()
    if not request.model:
        screen.print(f"the newest run is {name}", markup=False)
    logging.disable_progress_bar()
    with screen.status(f"loading {name} ..."):
        prompting = Prompting(request.prompting["form"], variables)
        speakers = open_speakers(name, request.compare, Loading(**request.loading), prompting)
    # torch begins each process with the same seed
    torch.seed() if request.seed is None else torch.manual_seed(request.seed)
    return speakers, sampling_of(speakers[0].trained.model, values)


def _chat(speakers: list[Speaker], sampling: Sampling, system: str) -> None:
    from sftkit.api import console
    from sftkit_commands.chat.commands import Chat
    from sftkit_commands.chat.opening import header
    from sftkit_commands.chat.show import note
    from sftkit_commands.chat.terminal import make_reader

    screen = console()
    for line in header(speakers, sampling):
        note(screen, line)
    screen.print()
    Chat(speakers, sampling, screen, system).run(make_reader())


def _answer(speakers: list[Speaker], sampling: Sampling, request: Request, question: str) -> None:
    """Print the answers to one prompt."""
    messages = [{"role": "system", "content": request.system}] if request.system else []
    messages.append({"role": "user", "content": question})
    answers: list[Answer] = []
    for speaker in speakers:
        if len(speakers) > 1 and not request.as_json:
            typer.echo(f"{speaker.name}:")
        with printing_json(request.as_json):
            answer = speaker.answer(messages, sampling, _ignore if request.as_json else _stream)
        if not request.as_json:
            typer.echo()
        if answer.stopped in ("length", "context"):
            why = "--max-new-tokens" if answer.stopped == "length" else "the model's context window"
            typer.echo(f"{speaker.name}: the answer was cut off after {answer.tokens} tokens by {why}", err=True)
        elif not answer.text:
            typer.echo(f"{speaker.name}: the answer is empty, the model ended it at once", err=True)
        answers.append(answer)
    if request.as_json:
        first, *others = (
            {"model": speaker.name, **answer.as_dict()} for speaker, answer in zip(speakers, answers, strict=True)
        )
        show_json({"prompt": question, **first, **({"compared": others[0]} if others else {})})


def _stream(text: str) -> None:
    typer.echo(text, nl=False)
    sys.stdout.flush()


def _ignore(text: str) -> None:
    """Nothing is printed while the answer is made."""
