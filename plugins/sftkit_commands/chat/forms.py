"""What the model is given: messages in its chat template, or a prompt as the run's data had it."""

from __future__ import annotations

import datetime
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sftkit.api import ConfigError, Problem, RowError, Skipped, SourceFormat, documents_of, prompt_ids, source_formats

if TYPE_CHECKING:
    from sftkit.api import TrainedModel

Message = dict[str, str]
FORMATS = ("auto", "chat", "prompt", "text")
#: Stands for the answer in a text that is searched for it. No data has it: the characters are for private use.
_ANSWER = "\ue0f7answer\ue0f7"
_MARKER = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")  # which only transformers knows
_SET_BY_CHAT = {"messages", "tools", "documents", "add_generation_prompt"}
DATE = "2024-07-26"


class Form(ABC):
    """Makes token ids of a conversation.

    Attributes:
        name: for people, what it does.
        remembers: whether earlier turns are part of the next prompt.
    """

    name: str
    remembers: bool = False

    @abstractmethod
    def ids(self, messages: list[Message]) -> list[int]:
        """The ids to continue with an answer to the last message.

        Raises:
            ConfigError: if these messages cannot be written in this form.
        """

    @abstractmethod
    def rows(self, messages: list[Message]) -> list[dict[str, Any]]:
        """Rows of data that hold these messages, as a run trains on them."""


@dataclass
class ChatForm(Form):
    """Messages, written with the tokenizer's chat template.

    Attributes:
        tokenizer: with a chat template.
        variables: further variables for the template.
        own: the variables of the run, which are part of its configuration.
        date: what the template writes as the date of today.
        special_tokens: what is added to the text; the template writes them, unless a processor does.
    """

    tokenizer: Any
    variables: dict[str, Any] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    date: str = DATE
    special_tokens: Any = "none"
    remembers = True

    @property
    def name(self) -> str:  # type: ignore[override]
        """See `Form`."""
        given = ", ".join(f"{name}={value}" for name, value in self.variables.items())
        return "chat template" + (f" with {given}" if given else "")

    def ids(self, messages: list[Message]) -> list[int]:
        """See `Form`."""
        return prompt_ids(self.tokenizer, self.text(messages), self.special_tokens)

    def text(self, messages: list[Message]) -> str:
        """The rendered messages, up to where the answer begins."""
        text = self._render(messages, add_generation_prompt=True)
        if text == self._render(messages):  # the template writes no prompt for an answer, so its header is looked up
            answered = self._render([*messages, {"role": "assistant", "content": _ANSWER}])
            return answered.partition(_ANSWER)[0].rstrip(" ")  # which is part of the answer's first token
        return text

    def _render(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        """The rendered messages, with the date of the run: `apply_chat_template` accepts no other than today's."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        wanted = messages[-1]["content"].strip()
        as_parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
        errors: list[Exception] = []
        for form in (messages, as_parts):  # templates of models with images may read lists of parts only
            try:
                text = str(
                    _compile_jinja_template(self.tokenizer.get_chat_template()).render(
                        {"tools": None, "documents": None, "strftime_now": self._now},
                        **{**self.tokenizer.special_tokens_map, **self.variables},
                        messages=form,
                        add_generation_prompt=add_generation_prompt,
                    )
                )
            except Exception as error:  # a template is a program, which may raise anything
                errors.append(error)
                continue
            if wanted in text:
                return text
        roles = ", ".join(message["role"] for message in messages)
        why = f"{type(errors[0]).__name__}: {errors[0]}" if errors else "it leaves out the last message"
        what = f"the chat template rejects these messages (roles: {roles}): {why}"
        fix = "try /reset without a system message" if messages[0]["role"] == "system" else "try /reset"
        raise ConfigError(Problem(what, "chat template", fix))

    def _now(self, form: str) -> str:
        return datetime.datetime.fromisoformat(self.date).strftime(form)

    def known_variables(self) -> set[str]:
        """The variables that the template reads, besides those that are set in any case."""
        import jinja2
        from jinja2 import meta

        template = self.tokenizer.chat_template
        text = template if isinstance(template, str) else "\n".join(template.values())
        parsed = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_MARKER.sub("", text))
        special = {*self.tokenizer.special_tokens_map, "strftime_now", "raise_exception"}
        return meta.find_undeclared_variables(parsed) - special - _SET_BY_CHAT

    def rows(self, messages: list[Message]) -> list[dict[str, Any]]:
        """See `Form`: one row with ``messages``, and the variables if they are not those of the run."""
        more = {} if self.variables == self.own else {"chat_template_kwargs": dict(self.variables)}
        return [{"messages": messages, **more}]


@dataclass
class TextForm(Form):
    """A prompt that stands by itself, written as the data of the run had it.

    Attributes:
        tokenizer: of the model.
        name: see `Form`.
        around: what stands before and after the user's words.
        columns: the columns of the question and of its answer; one column is plain text.
        special_tokens: what is added around a text.
    """

    tokenizer: Any
    name: str
    around: tuple[str, str] = ("", "")
    columns: tuple[str, ...] = ("text",)
    special_tokens: Any = "bos_eos"

    def ids(self, messages: list[Message]) -> list[int]:
        """See `Form`."""
        before, after = self.around
        return prompt_ids(self.tokenizer, f"{before}{messages[-1]['content']}{after}", self.special_tokens)

    def rows(self, messages: list[Message]) -> list[dict[str, Any]]:
        """See `Form`: a row for each prompt and its completion."""
        texts = [message["content"] for message in messages if message["role"] != "system"]
        pairs = zip(texts[::2], texts[1::2], strict=False)
        if len(self.columns) == 1:
            return [{self.columns[0]: prompt + answer} for prompt, answer in pairs]
        return [dict(zip(self.columns, pair, strict=True)) for pair in pairs]


def form_of(trained: TrainedModel, wanted: str, variables: Mapping[str, Any]) -> Form:
    """The form of the prompts of a model: that of its run's data, else its chat template, else plain text.

    Args:
        trained: the model.
        wanted: one of `FORMATS`.
        variables: for the chat template; they override those of the run.

    Raises:
        ConfigError: if the model cannot be used in the form that is wanted, or the run's data was formatted by a plugin
            that does not work here.
    """
    if wanted not in FORMATS:
        raise ConfigError(Problem(f"there is no format {wanted!r}", "--format", f"use one of {', '.join(FORMATS)}"))
    section = trained.manifest["config"]["data"] if trained.manifest else {}
    own = section.get("chat_template_kwargs", {})
    special_tokens = section.get("special_tokens", "bos_eos")
    has_template = bool(getattr(trained.tokenizer, "chat_template", None))
    plain = TextForm(trained.tokenizer, "plain text, which the model completes", special_tokens=special_tokens)
    formats = list(source_formats(trained)) if wanted != "text" else []
    rendered = [source.special_tokens for source in formats if not source.formatter.adds_special_tokens]
    chat = ChatForm(trained.tokenizer, {**own, **variables}, own, _date(trained), *rendered[:1])
    if wanted == "text":
        return plain
    if wanted == "chat" and not has_template:
        fix = "use --format text, or train with plugin chatml"
        raise ConfigError(Problem("the tokenizer has no chat template", "--format chat", fix))
    if wanted == "chat":
        return chat
    prompts = [form for form in (_prompt_form(trained.tokenizer, source) for source in formats) if form]
    if prompts and (wanted == "prompt" or not rendered):
        return prompts[0]
    if wanted == "prompt":
        why = "no prompt can be recognised in the run's data" if formats else "no run tells how its data was written"
        raise ConfigError(Problem(why, "--format prompt", "use --format text, and write the prompt as in the data"))
    only_text = bool(formats) and all(map(_is_plain, formats))
    return chat if has_template and not only_text else plain


def _date(trained: TrainedModel) -> str:
    options = trained.manifest["config"]["plugins"] if trained.manifest else {}
    return next((str(values["date"]) for values in options.values() if "date" in values), DATE)


def _prompt_form(tokenizer: Any, source: SourceFormat) -> TextForm | None:
    """The form of rows with a question and an answer in two columns of text; None for rows of any other kind.

    The formatter is given a row whose columns hold their own names in brackets, and the text that it makes shows which
    is the last: the answer. The question is the column that must be filled.
    """
    if not source.formatter.adds_special_tokens or source.formatter.tokenized:
        return None
    marks = _marks(source)
    whole = _text_of(source, marks) or ""
    placed = {whole.index(mark): name for name, mark in marks.items() if mark in whole}
    if len(placed) < 2:
        return None
    *others, answer = (name for _, name in sorted(placed.items()))
    for question in others:
        text = _text_of(source, {question: marks[question], answer: marks[answer]}) or ""
        if text.count(marks[question]) == 1 and text.count(marks[answer]) == 1:
            before, _, rest = text.partition(marks[question])
            name = f"written as in the data of the run (columns {question}, {answer})"
            around = (before, rest.partition(marks[answer])[0])
            return TextForm(tokenizer, name, around, (question, answer), source.special_tokens)
    return None


def _marks(source: SourceFormat) -> dict[str, str]:
    """A text for each column of text, which no other has."""
    kinds = ("string", "large_string")
    names = [name for name, kind in source.columns.items() if getattr(kind, "dtype", "") in kinds]
    return {name: f"\ue0f7{number}\ue0f7" for number, name in enumerate(names)}


def _is_plain(source: SourceFormat) -> bool:
    """Whether a row is trained on as its text is."""
    marks = _marks(source)
    return source.formatter.adds_special_tokens and _text_of(source, marks) in marks.values()


def _text_of(source: SourceFormat, values: Mapping[str, str]) -> str | None:
    """The text of a row with some columns filled; None if it cannot be formatted."""
    try:
        outcome = source.formatter({name: [values.get(name)] for name in source.columns})[0]
    except (
        RowError,
        ConfigError,
        ArithmeticError,
        LookupError,
        TypeError,
        ValueError,
    ):  # a function may raise anything
        return None
    documents = [] if isinstance(outcome, Skipped) else list(documents_of([outcome]))
    return "".join(span[0] for span in documents[0]) if documents else None
