"""Which format a data set is in, by the names and types of its columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from sftkit.api import ConfigError, DataError, DataSection, Formatter, Loss, Problem, nearest
from sftkit_plugins.formats.chat import Chat
from sftkit_plugins.formats.instruct import Alpaca, PromptCompletion, Text
from sftkit_plugins.formats.weights import COLUMN, has_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXT_TYPES = ("string", "large_string", "string_view")
_LACKS = {"completion": "no completion", "assistant": "no assistant turns"}


def recognise(columns: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, data: DataSection) -> Formatter:
    """The formatter of the first format that fits: messages, conversations, prompt/completion, Alpaca, text.

    A ``data.text_column`` other than the default has been asked for, and goes before all of them.

    Raises:
        ConfigError: for a ``data.loss`` that the format has no place for, or conversations without a template.
        DataError: if no format fits, or a column ``weight`` holds no numbers.
    """
    names = {name for name, feature in columns.items() if is_text(feature)}
    chats = {name for name, feature in columns.items() if is_messages(feature)}
    if data.text_column != "text":
        return _named_text(columns, names, data)
    for column in ("messages", "conversations"):
        if column in chats:
            return _chat((column,), columns, tokenizer, _loss(data, "messages", "assistant", "all"), data)
    if {"prompt", "completion"} <= chats:
        loss = _loss(data, "prompt/completion", "completion", "assistant", "all")
        return _chat(("prompt", "completion"), columns, tokenizer, loss, data)
    if {"prompt", "completion"} <= names:
        return PromptCompletion(_loss(data, "prompt/completion", "completion", "all"), has_weights(columns))
    if {"instruction", "output"} <= names:
        return Alpaca(_loss(data, "Alpaca", "completion", "all"), has_weights(columns))
    if "text" in names:
        return Text("text", _loss(data, "text", "all"), has_weights(columns))
    raise DataError(_no_format(columns))


def is_text(feature: Any) -> bool:
    """Whether a column's type is text."""
    return getattr(feature, "dtype", None) in _TEXT_TYPES


def is_messages(feature: Any) -> bool:
    """Whether a column's type is a list of ``{role, content}`` or ``{from, value}``, or JSON of any shape."""
    if _is_json(feature):
        return True
    element = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    if _is_json(element):
        return True
    return isinstance(element, Mapping) and ({"role", "content"} <= set(element) or {"from", "value"} <= set(element))


def _is_json(feature: Any) -> bool:
    return type(feature).__name__ == "Json"


def _loss(data: DataSection, form: str, default: Loss, *others: Loss) -> Loss:
    if data.loss is None or data.loss in (default, *others):
        _check_turns(data, data.loss or default, form)
        return data.loss or default
    if form == "text":
        fix = "use data.loss: all, or -p completion_only:response_template=... without data.loss"
    else:
        fix = f"use data.loss: {default} (the default here), or all"
    what = f"{data.loss} cannot be trained: data in the {form} format has {_LACKS[data.loss]}"
    raise ConfigError(Problem(what, "data.loss", fix, ("data", "loss")))


def _check_turns(data: DataSection, loss: Loss, form: str) -> None:
    chosen = [key for key in ("turns", "roles") if getattr(data, key) != DataSection.model_fields[key].default]
    if loss != "assistant" and chosen:
        what = f"it chooses turns, and data.loss is {loss} (data in the {form} format)"
        raise ConfigError(Problem(what, f"data.{chosen[0]}", "use data.loss: assistant", ("data", chosen[0])))


def _chat(
    chat_columns: tuple[str, ...],
    columns: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    loss: Loss,
    data: DataSection,
) -> Chat:
    template = getattr(tokenizer, "chat_template", None)
    if not template or (isinstance(template, Mapping) and "default" not in template):
        which = "no chat template" if not template else f"chat templates {sorted(template)} and no default"
        what = f"the column {chat_columns[0]!r} holds conversations, and the tokenizer has {which}"
        fix = "set one: -p chatml, or name the tokenizer of a chat model as model.tokenizer"
        raise ConfigError(Problem(what, "chat template", fix))
    specials = cast("Mapping[str, Any]", tokenizer.special_tokens_map)
    return Chat(
        columns=chat_columns,
        template=template if isinstance(template, str) else dict(template),
        special_tokens=dict(specials),
        loss=loss,
        has_tools="tools" in columns,
        turns=data.turns,
        roles=tuple(data.roles),
        weighted=has_weights(columns),
    )


def _named_text(columns: Mapping[str, Any], names: set[str], data: DataSection) -> Text:
    column = data.text_column
    if column not in names:
        what = f"it is of type {_type(columns[column])}, not text" if column in columns else "no such column"
        fix = nearest(column, names) or f"columns of text: {', '.join(sorted(names)) or 'none'}"
        raise DataError(Problem(f"{what}: {column!r}", "data.text_column", fix, ("data", "text_column")))
    return Text(column, _loss(data, "text", "all"), column != COLUMN and has_weights(columns))


def _no_format(columns: Mapping[str, Any]) -> Problem:
    found = ", ".join(f"{name} ({_type(feature)})" for name, feature in columns.items()) or "none"
    accepted = (
        "rename columns to one of: messages (list of {role, content}); conversations (list of {from, value}); "
        "prompt and completion (both text, or both lists of messages); instruction, output and perhaps input (text); "
        "text; or name the column as data.text_column, or give your own function as data.formatting"
    )
    return Problem(f"no format fits these columns: {found}", "data", accepted)


def _type(feature: Any) -> str:
    dtype = getattr(feature, "dtype", None)
    if isinstance(dtype, str):
        return dtype
    element = getattr(feature, "feature", None)
    if isinstance(element, Mapping):
        return f"list of {{{', '.join(element)}}}"
    return f"list of {_type(element)}" if element is not None else type(feature).__name__
