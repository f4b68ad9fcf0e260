"""What the type of a column says about the values in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sftkit_plugins.formats.reading import CALL_KEYS, CONTENTS, SENDERS
from sftkit_plugins.formats.shapes import exchange_keys

_TEXT_TYPES = ("string", "large_string", "string_view")
_ARGUMENTS = ("arguments", "parameters", "input", "args", "parts", "content")


def is_text(feature: Any) -> bool:
    """Whether a column holds text."""
    return getattr(feature, "dtype", None) in _TEXT_TYPES


def is_json(feature: Any) -> bool:
    """Whether a column holds JSON of any shape, which is stored as it was written."""
    return type(feature).__name__ == "Json"


def element(feature: Any) -> Any:
    """The type of the elements of a list; None for other types."""
    return feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)


def is_texts(feature: Any) -> bool:
    """Whether a column holds lists of texts."""
    return is_text(element(feature))


def is_messages(feature: Any) -> bool:
    """Whether a column holds lists of messages or of questions with answers, or JSON of any shape."""
    inner = element(feature)
    if is_json(feature) or is_json(inner):
        return True
    if not isinstance(inner, Mapping):
        return False
    keys = set(inner)
    has_content = any(key in keys for key in (*CONTENTS, *CALL_KEYS))
    return (has_content and any(key in keys for key in SENDERS)) or exchange_keys(keys) is not None


def is_conversation(feature: Any) -> bool:
    """Whether a column holds messages, or texts by the user and the assistant in turn."""
    return is_messages(feature) or is_texts(feature)


def nulls_are_data(feature: Any) -> bool:
    """Whether a column holds JSON where tool calls have their arguments: as a whole, or in a key for arguments."""
    if is_json(feature):
        return True
    if isinstance(feature, Mapping):
        return any(is_json(item) for key, item in feature.items() if key in _ARGUMENTS) or _any_exact(feature.values())
    return _any_exact([element(feature)]) if element(feature) is not None else False


def _any_exact(features: Iterable[Any]) -> bool:
    return any(nulls_are_data(feature) for feature in features)


def type_name(feature: Any) -> str:
    """The type of a column, for messages."""
    dtype = getattr(feature, "dtype", None)
    if isinstance(dtype, str):
        return dtype
    inner = element(feature)
    if isinstance(inner, Mapping):
        return f"list of {{{', '.join(inner)}}}"
    return f"list of {type_name(inner)}" if inner is not None else type(feature).__name__
