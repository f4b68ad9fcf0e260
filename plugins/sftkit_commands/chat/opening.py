"""The models of a chat: which are meant, loaded with the form of their prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.api import ConfigError, Problem, TrainedModel, base_name, has_adapter, load_trained, trained_runs
from sftkit_commands.chat.forms import ChatForm, Form, form_of
from sftkit_commands.chat.settings import unknown_setting
from sftkit_commands.chat.speaker import Speaker, describe

if TYPE_CHECKING:
    from collections.abc import Iterable

RUNS = "runs"
BASE = "base"


@dataclass(frozen=True)
class Loading:
    """How models are loaded; see `sftkit.api.load_trained`.

    Attributes:
        base: the base model of an adapter, if it is elsewhere than it was.
        dtype: of the weights.
        device: where the model is put.
        plugins: further plugins that load it.
        trust_remote_code: whether code that comes with the model may run.
    """

    base: str | None = None
    dtype: str | None = None
    device: str | None = None
    plugins: tuple[str, ...] = ()
    trust_remote_code: bool = False

    def load(self, name: str) -> TrainedModel:
        """The model of this name."""
        return load_trained(name, **dataclasses.asdict(self))


@dataclass(frozen=True)
class Prompting:
    """How prompts are written.

    Attributes:
        form: one of `sftkit_commands.chat.forms.FORMATS`.
        variables: for the chat template.
    """

    form: str = "auto"
    variables: Mapping[str, Any] = field(default_factory=dict)


def newest_run() -> str:
    """The newest run in the directory ``runs`` that has saved a model.

    Raises:
        ConfigError: if there is none.
    """
    for path in trained_runs(Path(RUNS)):
        return str(path)
    what = f"there is no run with a model in the directory {RUNS}"
    raise ConfigError(Problem(what, str(Path.cwd()), "name a run, a model directory or a hub name: sftkit chat RUN"))


def open_speakers(name: str, compare: str, loading: Loading, prompting: Prompting) -> list[Speaker]:
    """The model, and the one to compare it with if there is one.

    Args:
        name: of the model.
        compare: the name of the other, ``base`` for the base model of the run, or empty.
        loading: how they are loaded.
        prompting: how prompts are written.

    Raises:
        ConfigError: if one of them cannot be loaded, or cannot be used like this.
    """
    trained = loading.load(name)
    form = form_of(trained, prompting.form, prompting.variables)
    if isinstance(form, ChatForm):
        _check_variables(prompting.variables, form.known_variables())
    elif prompting.variables:
        what = f"variables are for a chat template, but prompts are {form.name}"
        raise ConfigError(Problem(what, "--template-option", "remove the option, or use --format chat"))
    speaker = Speaker(name, trained, form)
    if not compare:
        return [speaker]
    if compare == BASE and has_adapter(trained.model):
        return [speaker, Speaker("without its adapter", trained, form, trained.model.disable_adapter)]
    other = base_name(trained, "name a model to compare with: --compare NAME") if compare == BASE else compare
    plain = dataclasses.replace(loading, base=None)
    return [speaker, _other(other, plain.load(other), form)]


def _check_variables(names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise unknown_setting(name, known, "--template-option")


def _other(name: str, trained: TrainedModel, form: Form) -> Speaker:
    """The model to compare with. It keeps its chat template; without one, it gets the same text as the first model."""
    if not isinstance(form, ChatForm):
        return Speaker(name, trained, dataclasses.replace(form, tokenizer=trained.tokenizer))  # type: ignore[type-var]
    if not trained.tokenizer.chat_template:
        trained.tokenizer.chat_template = form.tokenizer.chat_template
        name = f"{name} (with the same chat template)"
    return Speaker(name, trained, dataclasses.replace(form, tokenizer=trained.tokenizer))


def header(speakers: list[Speaker], sampling: Any) -> list[str]:
    """What the user should know before the first question."""
    first = speakers[0]
    lines = [" · ".join([first.name, *describe(first.trained.model)])]
    lines += [f"compared with {speaker.name}" for speaker in speakers[1:]]
    memory = "" if first.form.remembers else "; earlier prompts are not sent"
    lines.append(f"prompts: {first.form.name}{memory}")
    if first.trained.processor is not None:
        lines.append("the model reads images, but the chat gives it text only")
    return [*lines, f"sampling: {sampling}", "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves"]
