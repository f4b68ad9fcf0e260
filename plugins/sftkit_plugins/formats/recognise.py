"""Which format a data set has, by the names and types of its columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from sftkit.api import ConfigError, DataError, Formatter, Problem, nearest
from sftkit_plugins.formats.chat import Chat
from sftkit_plugins.formats.instruct import Alpaca, PromptCompletion, Text
from sftkit_plugins.formats.messages import MessagesReader
from sftkit_plugins.formats.options import Loss
from sftkit_plugins.formats.weights import COLUMN, has_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sftkit_plugins.formats import Formats

_TEXT_TYPES = ("string", "large_string", "string_view")
_LACKS = {"completion": "no completion", "assistant": "no assistant turns"}


def recognise(columns: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, options: Formats) -> Formatter:
    """The formatter of the first format that fits: messages, conversations, prompt/completion, Alpaca, text.

    A ``text_column`` other than the default was set by the user and overrides all formats.

    Raises:
        ConfigError: if the format does not support the option ``loss``, or the tokenizer has no chat template for
            conversations.
        DataError: if no format fits, or a column ``weight`` does not hold numbers.
    """
    names = {name for name, feature in columns.items() if is_text(feature)}
    chats = {name for name, feature in columns.items() if is_messages(feature)}

    def loss(form: str, default: Loss, *others: Loss) -> dict[str, Any]:
        return {"loss": _loss(options, form, default, *others), "loss_is_set": options.loss is not None}

    if options.text_column != "text":
        return _named_text(columns, names, options.text_column, loss("text", "all"))
    for column in ("messages", "conversations"):
        if column in chats:
            return _chat((column,), columns, tokenizer, options, loss("messages", "assistant", "all"))
    if {"prompt", "completion"} <= chats:
        chosen = loss("prompt/completion", "completion", "assistant", "all")
        return _chat(("prompt", "completion"), columns, tokenizer, options, chosen)
    if {"prompt", "completion"} <= names:
        return PromptCompletion(**loss("prompt/completion", "completion", "all"), weighted=has_weights(columns))
    if {"instruction", "output"} <= names:
        return Alpaca(**loss("Alpaca", "completion", "all"), weighted=has_weights(columns))
    if "text" in names:
        return Text(**loss("text", "all"), weighted=has_weights(columns))
    raise DataError(_no_format(columns))


def is_text(feature: Any) -> bool:
    """Whether a column holds text."""
    return getattr(feature, "dtype", None) in _TEXT_TYPES


def is_messages(feature: Any) -> bool:
    """Whether a column holds lists of ``{role, content}`` or ``{from, value}``, or JSON of any shape."""
    if _is_json(feature):
        return True
    element = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    if _is_json(element):
        return True
    return isinstance(element, Mapping) and ({"role", "content"} <= set(element) or {"from", "value"} <= set(element))


def _is_json(feature: Any) -> bool:
    return type(feature).__name__ == "Json"


def _loss(options: Formats, form: str, default: Loss, *others: Loss) -> Loss:
    """The option ``loss``, or the default of the format; checked against what the format supports."""
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


def _chat(
    chat_columns: tuple[str, ...],
    columns: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    options: Formats,
    loss: dict[str, Any],
) -> Chat:
    template = getattr(tokenizer, "chat_template", None)
    if not template or (isinstance(template, Mapping) and "default" not in template):
        which = "no chat template" if not template else f"only the chat templates {sorted(template)}, and no default"
        what = f"the column {chat_columns[0]!r} holds conversations, but the tokenizer has {which}"
        fix = "set a chat template with -p chatml, or set model.tokenizer to the tokenizer of a chat model"
        raise ConfigError(Problem(what, "chat template", fix))
    specials = cast("Mapping[str, Any]", tokenizer.special_tokens_map)
    return Chat(
        reader=MessagesReader(chat_columns, "tools" in columns),
        template=template if isinstance(template, str) else dict(template),
        special_tokens=dict(specials),
        turns=options.turns,
        roles=options.roles,
        variables=options.chat_template_kwargs,
        allow_left_out=options.allow_left_out,
        reasoning=options.reasoning,
        date=options.date.isoformat(),
        weighted=has_weights(columns),
        **loss,
    )


def _named_text(columns: Mapping[str, Any], names: set[str], column: str, loss: dict[str, Any]) -> Text:
    if column not in names:
        what = f"no such column: {column!r}"
        if column in columns:
            what = f"column {column!r} is of type {_type(columns[column])}, not text"
        fix = nearest(column, names) or f"use a column of text: {', '.join(sorted(names)) or 'there is none'}"
        raise DataError(_option_problem("text_column", what, fix))
    return Text(column=column, weighted=column != COLUMN and has_weights(columns), **loss)


def _no_format(columns: Mapping[str, Any]) -> Problem:
    found = ", ".join(f"{name} ({_type(feature)})" for name, feature in columns.items()) or "none"
    accepted = (
        "rename columns to one of: messages (list of {role, content}); conversations (list of {from, value}); "
        "prompt and completion (both text, or both lists of messages); instruction, output and optional input (text); "
        "text. Or set formats:text_column to the name of a text column, or formats:formatting to your own function"
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
