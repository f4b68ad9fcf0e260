"""Whose turn a message is: the names that other tools use for roles, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)

#: The names of each role, in lower case. A name may be written in any case, and with a space or a hyphen for the
#: underscore. The names of `CALLS` are those of an assistant turn whose content is a tool call, as JSON.
NAMES: Mapping[Role, tuple[str, ...]] = MappingProxyType(
    {
        "system": ("system",),
        "developer": ("developer",),
        "user": ("user", "human", "prompter"),
        "assistant": (
            *("assistant", "gpt", "chatgpt", "bing", "bard", "claude", "model", "bot", "chatbot", "ai"),
            *("function_call", "tool_call", "tool_calls"),
        ),
        "tool": (
            *("tool", "observation", "ipython", "function", "environment"),
            *("tool_response", "tool_result", "tool_results", "function_response", "function_result"),
        ),
    }
)
CALLS = ("function_call", "tool_call", "tool_calls")

_ROLES: dict[str, Role] = {name: role for role, names in NAMES.items() for name in names}


def role_of(name: str) -> Role | None:
    """The role that a name stands for; None for an unknown name."""
    return _ROLES.get(_plain(name))


def is_call(name: str) -> bool:
    """Whether the content of a message with this role is a tool call."""
    return _plain(name) in CALLS


def _plain(name: str) -> str:
    return name.lower().replace(" ", "_").replace("-", "_")
