"""Renders messages with a chat template, and makes spans of the result."""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from sftkit.api import Document, Span

Region = tuple[int, int]
"""Start and end, in characters of the rendered conversation."""
Messages = list[dict[str, Any]]

#: What a template prints as today's date unless the option ``date`` says otherwise: the date that Llama 3's own
#: templates fall back to.
DATE = "2024-07-26"
#: The variables of a template that each row sets.
RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
#: Stand for the start and the end of a region between generation markers in a text that is rendered ``marked``.
OPEN, CLOSE = "\ue0f2", "\ue0f3"
_MARKER = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
FIX = "use a chat template with {% generation %} markers, such as -p chatml, or set formats:loss=all"


class RefusedError(Exception):
    """A conversation that cannot be trained on with a template.

    Args:
        message: what is wrong; it names the message.
        fix: what the user can do.
    """

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.message, self.fix = message, fix


class RejectedError(RefusedError):
    """Messages that the template itself rejects."""


@dataclass(frozen=True)
class Rendering:
    """Renders messages with one template.

    Attributes:
        template: the Jinja chat template.
        special_tokens: the tokenizer's, by name.
        date: what the template's clock shows, as in ``2024-07-26``.
        clock: gets an item whenever the template reads the clock.
    """

    template: str
    special_tokens: Mapping[str, Any]
    date: str = DATE
    clock: list[str] = field(default_factory=list, repr=False, compare=False)
    _ready: dict[bool, tuple[Any, dict[str, Any]]] = field(default_factory=dict, repr=False, compare=False)

    def text(
        self,
        messages: Messages,
        tools: list[dict[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        *,
        prompt: bool = False,
        marked: bool = False,
    ) -> str:
        """The rendered messages.

        Args:
            messages: as chat templates expect them.
            tools: descriptions of the tools.
            variables: further variables for the template.
            prompt: whether to add the generation prompt.
            marked: whether to write `OPEN` and `CLOSE` where the template has generation markers.

        Raises:
            RejectedError: if the template rejects the messages.
        """
        try:
            template, names = self._ready[marked] if marked in self._ready else self._prepare(marked)
            values = names.copy()
            if variables:
                values.update(variables)
            values["messages"], values["tools"], values["add_generation_prompt"] = messages, tools, prompt
            # As template.new_context makes it, without a copy of the names of globals, which only imports need.
            environment = template.environment
            context = environment.context_class(environment, values, template.name, template.blocks)
            return "".join(template.root_render_func(context))
        except Exception as error:  # a template runs the user's Jinja, which may raise anything
            roles = ", ".join(str(message.get("role")) for message in messages) or "none"
            what = f"the chat template rejects the messages (roles: {roles}): {type(error).__name__}: {error}"
            fix = "change the messages, or use another template, such as -p chatml"
            raise RejectedError(what, fix) from error

    def _prepare(self, marked: bool) -> tuple[Any, dict[str, Any]]:
        """The compiled template, and the names that all rows share."""
        template, names = _compiled(self.template, marked)
        names = {**names, "strftime_now": self._now, **self.special_tokens, "documents": None}
        self._ready[marked] = template, names
        return template, names

    def _now(self, form: str) -> str:
        self.clock.append(form)
        return datetime.datetime.fromisoformat(self.date).strftime(form)


@functools.lru_cache(16)
def _compiled(template: str, marked: bool) -> tuple[Any, dict[str, Any]]:
    """The template as transformers compiles it, and the global names of its environment.

    This is faster than the rendering functions of transformers and Jinja, which prepare much more for each call.
    Generation markers become blocks that are scopes too and need no extra call. Blocks have the same whitespace control
    on both sides.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    compiled = _compile_jinja_template(_MARKER.sub(_marking if marked else _silent, template))
    return compiled, dict(compiled.globals)


def _silent(marker: re.Match[str]) -> str:
    left, end, right = marker.groups()
    return f"{{%{left} {end or ''}with {right}%}}"


def _marking(marker: re.Match[str]) -> str:
    left, end, right = marker.groups()
    if end:
        return f"{{%{left} endif %}}{{{{ '{CLOSE}' }}}}{{% endwith {right}%}}"
    return f"{{%{left} with %}}{{{{ '{OPEN}' }}}}{{% if true {right}%}}"


def has_markers(template: str) -> bool:
    """Whether the template marks with ``{% generation %}`` what the assistant writes."""
    return _MARKER.search(template) is not None


def parsed(template: str) -> Any:
    """The template's syntax tree, in which generation markers are ``with`` blocks."""
    return _compiled(template, False)[0].environment.parse(_MARKER.sub(_silent, template))


def split(text: str, regions: Sequence[Region], weights: Iterable[float] = repeat(1.0)) -> Document:
    """The text as spans: the regions are trained, with their weights."""
    spans, done = [], 0
    for (start, end), weight in zip(regions, weights, strict=False):
        start = max(start, done)
        if start > done:
            spans.append(Span(text[done:start], False))
        if end > start:
            spans.append(Span(text[start:end], True, weight))
        done = max(done, end)
    if done < len(text):
        spans.append(Span(text[done:], False))
    return spans
