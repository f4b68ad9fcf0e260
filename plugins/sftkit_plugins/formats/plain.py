"""Conversations of plain messages, role and content alone: those with the same roles share everything but their texts.

What is found out about the first such row in the usual way serves the others: they are rendered, and that their texts
are where those of the first are is checked for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, MutableMapping
from typing import Any

from sftkit.api import Formatted, Outcome
from sftkit_plugins.formats.conversation import Conversation
from sftkit_plugins.formats.probes import Probes
from sftkit_plugins.formats.rendering import Messages, split
from sftkit_plugins.formats.turns import KEPT, Shared, Turns

Known = MutableMapping[tuple[str, ...], Shared | None]
"""What rows with these roles share; None for roles whose rows share nothing that can be used."""


class PlainRows:
    """Makes the documents of plain conversations.

    Args:
        known: what is known already; it grows.
        template: what is known about the template.
        variables: the variables of the run for the template.
        notes: what the user should know about each row.
        dated: the note for rows in which the template writes a date.
        trained: the numbers of the messages to train.
    """

    def __init__(
        self,
        known: Known,
        template: tuple[Probes, Turns],
        variables: Mapping[str, Any],
        notes: Collection[str],
        dated: str,
        trained: Callable[[Messages], Collection[int]],
    ) -> None:
        self._known, (self._probes, self._turns), self._variables = known, template, variables
        self._notes, self._dated, self._trained = notes, dated, trained
        self._clock = self._probes.rendering.clock
        self._unknown: Messages | None = None

    def outcome(self, conversation: Conversation) -> Outcome | None:
        """What a row becomes; None if that has to be found out in the usual way.

        Raises:
            RejectedError: if the template rejects the messages.
        """
        self._unknown, messages = None, conversation.messages
        if not messages or conversation.tools is not None or conversation.variables:
            return None
        values = self._turns.values(messages)
        if values is None:
            return None
        roles = tuple([message["role"] for message in messages])
        if roles not in self._known:
            self._unknown = messages
            return None
        shared = self._known[roles]
        if shared is None:
            return None
        self._clock.clear()
        found = shared.find(messages, values)
        if found is None:
            return None
        text, regions, notes = found
        document = split(text, regions)
        if not (notes or conversation.notes or self._notes or self._clock):
            return document
        dated = [self._dated] if self._clock else []
        every = tuple(dict.fromkeys([*conversation.notes, *self._notes, *dated, *notes]))
        return Formatted([document], every)

    def learn(self) -> None:
        """Remember what the row that `outcome` was called with last shares with others."""
        if self._unknown is None:
            return
        if len(self._known) >= KEPT:
            self._known.clear()
        roles = tuple([message["role"] for message in self._unknown])
        wanted = frozenset(self._trained(self._unknown))
        self._known[roles] = self._turns.shared(self._unknown, self._variables, wanted) if wanted else None
