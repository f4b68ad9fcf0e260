"""Columns beside the conversation or the text: system message, earlier turns, tools, and variables of the template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftkit.api import Columns, RowError
from sftkit_plugins.formats.blocks import read_blocks
from sftkit_plugins.formats.column_types import is_text, nulls_are_data
from sftkit_plugins.formats.conversation import Message
from sftkit_plugins.formats.reading import CONTENTS, SENDERS, Rules
from sftkit_plugins.formats.shapes import parsed, read_history
from sftkit_plugins.formats.tool_calls import read_tools, without_nulls

SYSTEM = ("system", "system_prompt", "system_message", "systemInstruction", "system_instruction")
TOOLS = ("tools", "functions", "toolConfig")
HISTORY, KWARGS, DOCUMENTS = "history", "chat_template_kwargs", "documents"
#: Variables of templates that a row cannot set.
_OWN = ("messages", "tools", "add_generation_prompt", "continue_final_message", "tokenize", "return_dict")
_NUMBERS = ("int", "uint", "float", "bool", "double", "timestamp", "date")


@dataclass(frozen=True)
class SideColumns:
    """The columns of a data set that complete its conversations.

    Attributes:
        system: the column of the system message, if there is one.
        history: that of earlier turns.
        tools: that of tool descriptions.
        kwargs: that of variables for the chat template.
        documents: that of documents, if the template reads them.
        variables: the variables that the template reads.
        exact_tools: whether nulls in tool descriptions are part of the data.
    """

    system: str | None = None
    history: str | None = None
    tools: str | None = None
    kwargs: str | None = None
    documents: str | None = None
    variables: frozenset[str] = frozenset()
    exact_tools: bool = False

    @classmethod
    def of(cls, columns: Mapping[str, Any], variables: frozenset[str] = frozenset()) -> SideColumns | None:
        """Those among some columns, of which numbers are none; None if there are none."""
        usable = {name: feature for name, feature in columns.items() if not _is_number(feature)}

        def first(*names: str) -> str | None:
            return next((name for name in names if name in usable), None)

        tools = first(*TOOLS)
        documents = first(DOCUMENTS) if DOCUMENTS in variables else None
        exact = tools is not None and nulls_are_data(columns[tools])
        found = cls(first(*SYSTEM), first(HISTORY), tools, first(KWARGS), documents, variables, exact)
        return found if found.names else None

    @classmethod
    def of_text(cls, columns: Mapping[str, Any]) -> SideColumns | None:
        """Those that have a place in text without a chat template: system message and earlier turns."""
        return cls.of({name: columns[name] for name in (*SYSTEM, HISTORY) if name in columns})

    @property
    def names(self) -> frozenset[str]:
        """The names of the columns."""
        found = (self.system, self.history, self.tools, self.kwargs, self.documents)
        return frozenset(name for name in found if name is not None)

    def read_system(self, rows: Columns, index: int) -> str:
        """The system message of a row; empty if there is none.

        Raises:
            RowError: if it is not text, a message, or a list of text blocks.
        """
        value = rows[self.system][index] if self.system else None
        if isinstance(value, dict) and any(value.get(key) is not None for key in SENDERS):
            value = next((value[key] for key in CONTENTS if value.get(key) is not None), None)
        if value is None or isinstance(value, str):
            return value or ""
        value = (
            [{"text": part} if isinstance(part, str) else part for part in value] if isinstance(value, list) else value
        )
        texts = read_blocks(value, index, f"column {self.system!r}", without_nulls).texts
        return "\n\n".join(text for text in texts if text)

    def read_history(self, rows: Columns, index: int, rules: Rules, notes: set[str]) -> list[Message]:
        """The earlier turns of a row.

        Raises:
            RowError: if they are neither pairs nor a conversation.
        """
        if not self.history:
            return []
        return read_history(rows[self.history][index], index, self.history, rules, notes)

    def read_tools(self, rows: Columns, index: int) -> list[dict[str, Any]] | None:
        """The tools of a row.

        Raises:
            RowError: if they are not descriptions.
        """
        if not self.tools:
            return None
        return read_tools(rows[self.tools][index], index, f"column {self.tools!r}", exact=self.exact_tools)

    def read_variables(self, rows: Columns, index: int, notes: set[str]) -> dict[str, Any]:
        """The variables of a row for the chat template; those that it does not read are noted.

        Raises:
            RowError: if the columns hold other values.
        """
        given: dict[str, Any] = {}
        if self.kwargs and (value := rows[self.kwargs][index]):
            value = parsed(value, index, self.kwargs) if isinstance(value, str) else value
            if not isinstance(value, dict):
                what = f"column {self.kwargs!r} is of type {type(value).__name__}, not a mapping"
                raise RowError(index, what, "write {variable: value}, or rename the column")
            given = without_nulls(value)
        read = {key: value for key, value in given.items() if key in self.variables and key not in _OWN}
        notes.update(f"{KWARGS} {key} ignored" for key in given if key not in read)
        if self.documents and (value := rows[self.documents][index]):
            read[DOCUMENTS] = json.loads(value) if isinstance(value, str) else without_nulls(value)
        return read

    def complete(
        self, messages: list[Message], rows: Columns, index: int, rules: Rules, notes: set[str]
    ) -> list[Message]:
        """The messages with the system message first, and earlier turns before them.

        If the messages have a system message, it wins; a column that says something else is noted as ignored.
        """
        system = self.read_system(rows, index)
        own = messages[:1] if messages and messages[0]["role"] == "system" else []
        earlier = self.read_history(rows, index, rules, notes)
        if own and system and system.strip() != str(own[0].get("content", "")).strip():
            notes.add(f"column {self.system} ignored where the messages have a system message")
        first = own or ([{"role": "system", "content": system}] if system else [])
        return [*first, *earlier, *messages[len(own) :]] if first or earlier else messages


def names_of(side: SideColumns | None) -> frozenset[str]:
    """The names of the columns, if there are any."""
    return frozenset() if side is None else side.names


def _is_number(feature: Any) -> bool:
    return not is_text(feature) and str(getattr(feature, "dtype", "")).startswith(_NUMBERS)
