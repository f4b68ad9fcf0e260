"""Secrets are replaced before text or values are shown or stored: tokens, passwords and credentials in URLs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
SHORTEST = 8  # shorter values of the environment, such as "true", are no secrets
#: Names of options and of variables that hold secrets; `eos_token`, `max_tokens` and the like are none.
_NAME = re.compile(
    r"^(token|bearer|authorization)$|passw(or)?d|passphrase|secret|credential"
    r"|(^|[_-])(api|access|account|private|signing|license)[_-]?key"
    r"|(^|[_-])(auth|access|api|hub|hf|hugging_?face|git(hub|lab)?|wandb|refresh|session|security|sas|bearer|id)"
    r"[_-]?tokens?($|[_-])",
    re.IGNORECASE,
)
_VARIABLE = re.compile(
    r"(TOKEN|SECRET|PASSW(OR)?D|PASSPHRASE|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIALS?)(?!IZ)", re.I
)
_NOT_SECRET = re.compile(r"_(PATH|FILE|DIR|PROVIDER|TYPE)$", re.IGNORECASE)
_USER = re.compile(r"(\w[\w+.-]*://)[^/\s'\"<>]+@")
_QUERY = re.compile(r"(\w[\w+.-]*://[^\s'\"<>?]*\?)([^\s'\"<>]+)")
_PARAMETER = re.compile(r"(^|[&;])([\w.\[\]%-]+)=[^&;#]+")
_PAIR = re.compile(r"""((['"])(?P<name>[\w-]+)\2\s*:\s*|\b(?P<option>[\w-]+)=)(['"]).*?(?<!\\)\5""")
_ASSIGNED = re.compile(r"(?<![\w-])(([\w-]+[.:])*([\w-]+)=)(?!\.\.\.|['\"])[^\s,'\"&}\])]+")
_SHAPES = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-[\w-]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\b(AKIA|ASIA)[A-Z0-9]{16}\b|\bBearer\s+[\w.~+/=-]{8,}",
)


def hide(text: str) -> str:
    """A text without secrets: credentials and query values of URLs, tokens by their shape, and values of variables.

    Args:
        text: such as an error message or a line of a log.
    """
    return _hidden_text(text, _values_of_variables())


def _hidden_text(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    if "://" in text:
        text = _USER.sub(rf"\1{HIDDEN}@", text)
        text = _QUERY.sub(lambda found: found[1] + _PARAMETER.sub(rf"\1\2={HIDDEN}", found[2]), text)
    text = _PAIR.sub(_hidden_pair, text)
    text = _ASSIGNED.sub(lambda found: f"{found[1]}{HIDDEN}" if is_secret_name(found[3]) else found[0], text)
    return _SHAPES.sub(HIDDEN, text)


def without_secrets(value: Any, name: str = "") -> Any:
    """A copy of plain data without secrets: whatever has the name of one, and what `hide` finds in texts.

    Args:
        value: mappings, lists and plain values, such as a configuration.
        name: the name of the value, if it has one.
    """
    return _hidden(value, name, _values_of_variables())


def _hidden(value: Any, name: str, secrets: list[str]) -> Any:
    if isinstance(value, Mapping):
        keys = {"key", "key_id"} if any(is_secret_name(str(key)) for key in value) else set()  # the user of a secret
        return {
            _hidden(key, "", secrets): HIDDEN if str(key) in keys else _hidden(item, str(key), secrets)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_hidden(item, name, secrets) for item in value]
    if isinstance(value, str | bytes) and is_secret_name(name):
        return HIDDEN
    return _hidden_text(value, secrets) if isinstance(value, str) else value


def is_secret_name(name: str) -> bool:
    """Whether an option of this name holds a secret."""
    return _NAME.search(name) is not None


def _hidden_pair(found: re.Match[str]) -> str:
    if not is_secret_name(found["name"] or found["option"]):
        return found[0]
    return f"{found[1]}{found[5]}{HIDDEN}{found[5]}"


def _values_of_variables() -> list[str]:
    """The secrets of the environment, the longest first, since one may be part of another."""
    found = {
        value
        for name, value in os.environ.items()
        if len(value) >= SHORTEST and _VARIABLE.search(name) and not _NOT_SECRET.search(name) and not _is_path(value)
    }
    return sorted(found, key=len, reverse=True)


def _is_path(value: str) -> bool:
    try:
        return os.path.exists(value)
    except ValueError:
        return False
