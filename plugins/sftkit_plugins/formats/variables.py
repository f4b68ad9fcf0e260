"""``data.chat_template_kwargs``: variables that a run gives to the chat template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sftkit.api import Problem
from sftkit_plugins.formats.rendering import RESERVED

KEY = ("data", "chat_template_kwargs")
WHERE = ".".join(KEY)


def variable_problems(variables: Mapping[str, Any], formatting: bool) -> Iterator[Problem]:
    """What is wrong with the variables before any data is read.

    Args:
        variables: those of the run.
        formatting: whether the user's own function makes the text.
    """
    for name in sorted(RESERVED & variables.keys()):
        yield Problem(f"{WHERE} cannot set {name}", WHERE, "remove it: each row sets it", (*KEY, name))
    if variables and formatting:
        yield no_effect("formats:formatting makes the text, without a chat template")


def no_effect(why: str) -> Problem:
    """The variables are set, but no chat template gets them."""
    return Problem(f"{WHERE} has no effect: {why}", WHERE, "remove it", KEY)
