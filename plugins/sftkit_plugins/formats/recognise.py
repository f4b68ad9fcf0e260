"""Which format a data set has, by the names and types of its columns."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from sftkit.api import ConfigError, DataError, Formatter, Problem, nearest
from sftkit_plugins.formats.chat import Chat
from sftkit_plugins.formats.column_types import (
    element,
    is_conversation,
    is_json,
    is_messages,
    is_text,
    is_texts,
    nulls_are_data,
    type_name,
)
from sftkit_plugins.formats.conversation import Reader
from sftkit_plugins.formats.instruct import Alpaca, PromptCompletion, Segments, Text
from sftkit_plugins.formats.messages import MessagesReader, PairReader, TreeReader
from sftkit_plugins.formats.options import Loss
from sftkit_plugins.formats.pairs import PAIRS, Pair
from sftkit_plugins.formats.reading import Rules
from sftkit_plugins.formats.refusals import LABELS, checked_columns, nothing_to_train, refusal, suggestion
from sftkit_plugins.formats.renamed import CONVERSATIONS, Renamed, check_names, names_of
from sftkit_plugins.formats.side_columns import SideColumns
from sftkit_plugins.formats.template_reads import TemplateReads, reads_of
from sftkit_plugins.formats.tokens import Tokens, has_tokens
from sftkit_plugins.formats.variables import no_effect
from sftkit_plugins.formats.weights import COLUMN, has_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sftkit.api import DataSection
    from sftkit_plugins.formats import Formats

logger = logging.getLogger("sftkit")

_LACKS = {"completion": "no completion", "assistant": "no assistant turns"}
_PROMPT = ("prompt", "completion")
_ACCEPTED = (
    "rename columns with formats:columns, to names of one format: messages (list of {role, content}); conversations "
    "(list of {from, value}); prompt and completion (both text, or lists of messages); instruction, output and "
    "optional input (text); question and answer (text); text. Or set formats:text_column to the name of a text column, "
    "or formats:formatting to your own function"
)


def recognise(
    columns: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    options: Formats,
    data: DataSection,
    *,
    images: bool = False,
) -> Formatter:
    """The formatter of the first format that fits; `docs/plugins/formats.md` lists them in order.

    A ``text_column`` other than the default was set by the user and overrides all formats.

    Args:
        columns: the columns of the data, with their types.
        tokenizer: the run's tokenizer.
        options: the options of the plugin.
        data: the section of the run's configuration, for the variables of the chat template.
        images: whether the run uses images.

    Raises:
        ConfigError: if the format does not support the option ``loss``, the tokenizer has no chat template for
            conversations, the option ``columns`` names columns that do not exist, or there are variables for the chat
            template but no conversations.
        DataError: if no format fits, the data is not for supervised fine-tuning, or a column ``weight`` does not hold
            numbers.
    """
    if has_tokens(columns):
        _check_variables(data, "tokenized rows are")
        return Tokens.of(columns, tokenizer, options)
    check_names(options.columns, columns)
    names = names_of(options.columns, columns)
    known = {name: columns[column] for name, column in names.items()}
    formatter = _Recognition(known, tokenizer, options, data.chat_template_kwargs, images).formatter()
    if not isinstance(formatter, Chat):
        _check_variables(data, f"the columns {', '.join(sorted(columns))} are")
    return formatter if all(name == column for name, column in names.items()) else Renamed(formatter, names)


def _check_variables(data: DataSection, what: str) -> None:
    """Variables of the run need conversations; with several sources, another one may hold them."""
    if data.chat_template_kwargs and data.mix is None:
        raise ConfigError(no_effect(f"{what} not rendered with a chat template"))


@dataclass(frozen=True)
class _Recognition:
    """The choice of a formatter, for columns with the names that the formats know."""

    columns: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerBase
    options: Formats
    variables: Mapping[str, Any]
    images: bool

    def formatter(self) -> Formatter:
        options, texts = self.options, {name for name, feature in self.columns.items() if is_text(feature)}
        if options.text_column != "text":
            return self._named_text(texts)
        if problem := refusal(self.columns):
            raise DataError(problem)
        if (found := self._conversation(texts) or self._text(texts) or self._mixed_pair(texts)) is not None:
            return found
        why = nothing_to_train(self.columns)
        found_columns = ", ".join(f"{name} ({type_name(feature)})" for name, feature in self.columns.items()) or "none"
        what = f"no format fits these columns: {found_columns}"
        renamed = "" if why else suggestion(self.columns)
        fix = f"set formats:columns to {renamed} if that is right; otherwise {_ACCEPTED}" if renamed else _ACCEPTED
        raise DataError(Problem(f"{why}; {what}" if why else what, "data", fix))

    def _conversation(self, texts: set[str]) -> Formatter | None:
        """A formatter for conversations in columns of their own."""
        columns = self.columns
        for name in (*CONVERSATIONS, "contents", "data"):
            fits = is_texts if name == "data" else is_conversation
            if name in columns and fits(columns[name]):
                return self._chat((name,), MessagesReader((name,), self._side, self._rules(name)), "messages")
        segment = element(columns.get("segments"))
        if is_json(columns.get("segments")) or is_json(segment) or _keys(segment, "label", "text"):
            return Segments(**self._loss("segments", "completion", "all"), **self._shared)
        if "message_tree_id" in columns and (is_json(columns.get("prompt")) or _keys(columns.get("prompt"), "replies")):
            self._report("message trees, of which the best thread is used", "prompt")
            return self._chat(("prompt",), TreeReader("prompt", self._side, self._rules("prompt")), "messages")
        kinds = [name in texts or is_messages(columns.get(name)) for name in _PROMPT]
        if all(kinds) and not texts >= {*_PROMPT}:
            reader = MessagesReader(_PROMPT, self._side, self._rules(*_PROMPT))
            return self._chat(_PROMPT, reader, "prompt/completion", "completion", "assistant")
        return None

    def _mixed_pair(self, texts: set[str]) -> Formatter | None:
        """A formatter for a question and its answer, of which one or both are messages."""
        listed = {name for name, feature in self.columns.items() if is_messages(feature) and not is_json(feature)}
        pair = next((pair for pair in PAIRS if set(pair) <= texts | listed), None)
        if pair is None:
            return None
        self._report("a question and its answer", *sorted(pair))
        reader = MessagesReader(pair, self._side, self._rules(*pair))
        return self._chat(pair, reader, "prompt/completion", "completion", "assistant")

    def _text(self, texts: set[str]) -> Formatter | None:
        """A formatter for columns of text."""
        shared, eos = self._shared, str(getattr(self.tokenizer, "eos_token", None) or "")
        side = SideColumns.of_text(self.columns)
        if {*_PROMPT} <= texts:
            chosen = self._loss("prompt/completion", "completion", "all")
            return PromptCompletion(side=side, eos=eos, **chosen, **shared)
        if {"instruction", "output"} <= texts:
            return Alpaca(side=side, eos=eos, **self._loss("Alpaca", "completion", "all"), **shared)
        if pair := Pair.among(texts):
            self._report("a question and its answer", *sorted(pair.columns))
            if self._template:
                reader = PairReader(pair, self._side, self._rules())
                return self._chat((pair.question,), reader, "question/answer", "assistant", "completion")
            pair, chosen = dataclasses.replace(pair, reasoning=None), self._loss("question/answer", "completion", "all")
            return PromptCompletion(pair=pair, between="\n", side=side, eos=eos, **chosen, **shared)
        if "text" in texts:
            if "prompt" in texts and "text" not in self.options.columns:
                what = "the columns prompt and text: text may be the answer to prompt, or repeat it"
                fix = "set formats:columns to {prompt: prompt, completion: text}, or to {text: text} to use text alone"
                raise DataError(Problem(what, "data", fix))
            checked = tuple(name for name in shared["checked"] if name not in LABELS)  # those label the text itself
            return Text(**self._loss("text", "all"), **{**shared, "checked": checked})
        for name in CONVERSATIONS:
            if name in texts:
                return self._chat((name,), MessagesReader((name,), self._side, self._rules(name)), "messages")
        return None

    def _chat(
        self, names: tuple[str, ...], reader: Reader, form: str, default: Loss = "assistant", *others: Loss
    ) -> Chat:
        template = self._template
        if not template:
            named = getattr(self.tokenizer, "chat_template", None)
            which = f"only the chat templates {sorted(named)}, and no default" if named else "no chat template"
            what = f"the column {names[0]!r} holds conversations, but the tokenizer has {which}"
            fix = "set a chat template with -p chatml, or set model.tokenizer to the tokenizer of a chat model"
            raise ConfigError(Problem(what, "chat template", fix))
        return Chat(
            reader=reader,
            template=template,
            special_tokens=self._special_tokens,
            turns=self.options.turns,
            roles=self.options.roles,
            variables=self.variables,
            allow_left_out=self.options.allow_left_out,
            reasoning=self.options.reasoning,
            date=self.options.date.isoformat(),
            **self._loss(form, default, *others, "all"),
            **self._shared,
        )

    @property
    def _template(self) -> str | dict[str, str] | None:
        """The chat template, or several by name; None if there is no default."""
        template = getattr(self.tokenizer, "chat_template", None)
        if isinstance(template, Mapping):
            return dict(template) if "default" in template else None
        return template or None

    @property
    def _special_tokens(self) -> dict[str, Any]:
        return dict(cast("Mapping[str, Any]", self.tokenizer.special_tokens_map))

    @property
    def _reads(self) -> TemplateReads:
        return reads_of(self._template or "", self._special_tokens)

    @property
    def _side(self) -> SideColumns | None:
        return SideColumns.of(self.columns, self._reads.variables)

    def _rules(self, *names: str) -> Rules:
        exact = all(nulls_are_data(self.columns[name]) for name in names)
        return Rules(self._reads, self.options.developer_as_system, exact)

    @property
    def _shared(self) -> dict[str, Any]:
        """What every formatter gets."""
        checked = checked_columns(self.columns, images=self.images)
        return {"weighted": has_weights(self.columns), "checked": checked}

    def _loss(self, form: str, default: Loss, *others: Loss) -> dict[str, Any]:
        return {"loss": chosen_loss(self.options, form, default, *others), "loss_is_set": self.options.loss is not None}

    def _report(self, what: str, *names: str) -> None:
        logger.info("formats: reading the columns %s as %s", ", ".join(names), what)

    def _named_text(self, texts: set[str]) -> Text:
        column = self.options.text_column
        if column not in texts:
            what = f"no such column: {column!r}"
            if column in self.columns:
                what = f"column {column!r} is of type {type_name(self.columns[column])}, not text"
            fix = nearest(column, texts) or f"use a column of text: {', '.join(sorted(texts)) or 'there is none'}"
            raise DataError(_option_problem("text_column", what, fix))
        weighted = column != COLUMN and has_weights(self.columns)
        return Text(column=column, weighted=weighted, **self._loss("text", "all"))


def chosen_loss(options: Formats, form: str, default: Loss, *others: Loss) -> Loss:
    """The option ``loss``, or the default of the format.

    Raises:
        ConfigError: if the format does not support it, or if it makes other options pointless.
    """
    loss = options.loss or default
    if loss not in (default, *others):
        fix = f"use loss={default} (the default for this format)" + (" or loss=all" if default != "all" else "")
        if form == "text":
            fix += ", or plugin completion_only without the option loss"
        what = f"loss={loss} is not possible: data in the {form} format has {_LACKS[loss]}"
        raise ConfigError(_option_problem("loss", what, fix))
    chosen = {"turns": options.turns != "all", "roles": options.roles != ("assistant",)}
    chosen["reasoning"] = options.reasoning != "as_rendered"
    if loss != "assistant" and any(chosen.values()):
        option = next(name for name, is_set in chosen.items() if is_set)
        what = f"{option} has no effect with loss={loss} (data in the {form} format)"
        raise ConfigError(_option_problem(option, what, "remove the option, or use loss=assistant with conversations"))
    return loss


def _option_problem(option: str, what: str, fix: str) -> Problem:
    return Problem(what, f"plugin formats, option {option}", fix, ("plugins", "formats", option))


def _keys(feature: Any, *keys: str) -> bool:
    return isinstance(feature, Mapping) and set(keys) <= set(feature)
