"""A row as a conversation, whatever its columns are: what the readers of the formats give to `Chat`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from sftkit.api import Columns

Message = dict[str, Any]


class Conversation(NamedTuple):
    """One row.

    Attributes:
        messages: as chat templates expect them: ``{role, content, ...}``. A message may have the keys ``train`` and
            ``weight``, which no template sees.
        prompt: number of messages that belong to the prompt, if the row separates it from a completion.
        tools: descriptions of the tools, as JSON schemas ``{type: function, function: {...}}``.
        variables: further variables for the template, such as ``documents`` and those of ``chat_template_kwargs``.
        notes: what the user should know about the row; see `sftkit.api.Formatted`.
    """

    messages: list[Message]
    prompt: int | None = None
    tools: list[dict[str, Any]] | None = None
    variables: Mapping[str, Any] = MappingProxyType({})
    notes: Sequence[str] = ()


class Reader(Protocol):
    """Reads rows of one format; holds plain data, so that it can be pickled."""

    @property
    def columns(self) -> frozenset[str]:
        """The columns that it uses."""

    def __call__(self, rows: Columns, index: int) -> Conversation:
        """The conversation of one row of a batch.

        Raises:
            RowError: for a value that is not a conversation; names the column and the message.
        """
