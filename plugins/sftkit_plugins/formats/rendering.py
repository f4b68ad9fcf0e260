"""One row's messages, rendered with a chat template."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from sftkit.api import Document, RowError, Span

Region = tuple[int, int]
"""Start and end, in characters of the rendered conversation."""
Messages = list[dict[str, Any]]

_MARKER = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
FIX = "use a chat template with {% generation %} markers, such as -p chatml, or set formats:loss=all"


@dataclass(frozen=True)
class Rendering:
    """Renders the messages of one row.

    Attributes:
        template: the Jinja chat template.
        special_tokens: the tokenizer's, by name.
        tools: the tools of this row.
        index: position of the row in its batch, for errors.
    """

    template: str
    special_tokens: Mapping[str, Any]
    tools: list[dict[str, Any]] | None
    index: int

    def text(self, messages: Messages, *, prompt: bool = False) -> str:
        """The rendered messages; with ``prompt``, up to where the assistant would continue.

        Raises:
            RowError: if the template rejects the messages.
        """
        try:
            template, names = _compiled(self.template)
            values = {"messages": messages, "tools": self.tools, "documents": None, "add_generation_prompt": prompt}
            context = template.new_context({**names, **self.special_tokens, **values}, shared=True)
            return "".join(template.root_render_func(context))
        except Exception as error:  # a template runs the user's Jinja, which may raise anything
            raise self._rejected(messages, error) from error

    @property
    def has_markers(self) -> bool:
        """Whether the template marks with ``{% generation %}`` what the assistant writes."""
        return _MARKER.search(self.template) is not None

    def marked(self, messages: Messages, text: str) -> list[Region]:
        """The regions inside the template's generation markers; adjacent regions are merged.

        Raises:
            RowError: if the template rejects the messages, or the markers do not enclose what the assistant wrote.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, marked = render_jinja_template(
                conversations=[messages],
                tools=self.tools,
                chat_template=self.template,
                return_assistant_tokens_mask=True,
                **self.special_tokens,
            )
        except Exception as error:
            raise self._rejected(messages, error) from error
        if texts[0] != text:
            what = "the chat template's {% generation %} markers change the rendered text"
            fix = "do not set variables between the markers, or use another template, such as -p chatml"
            raise RowError(self.index, what, fix)
        regions: list[Region] = []
        for start, end in ((int(start), int(end)) for start, end in marked[0]):
            if regions and start == regions[-1][1]:
                regions[-1] = (regions[-1][0], end)
            else:
                regions.append((start, end))
        ends = [0, *(end for _, end in regions)]
        in_order = all(before <= start <= end <= len(text) for before, (start, end) in zip(ends, regions, strict=False))
        if not in_order or not _covers_content(text, regions, messages):
            what = "the chat template's {% generation %} markers do not enclose what the assistant wrote"
            fix = "put the markers around it, outside of any macro, or use another template, such as -p chatml"
            raise RowError(self.index, what, fix)
        return regions

    def _rejected(self, messages: Messages, error: Exception) -> RowError:
        roles = ", ".join(message["role"] for message in messages) or "none"
        what = f"the chat template rejects the messages (roles: {roles}): {type(error).__name__}: {error}"
        return RowError(self.index, what, "change the messages, or use another template, such as -p chatml")


@functools.lru_cache(8)
def _compiled(template: str) -> tuple[Any, dict[str, Any]]:
    """The template as transformers compiles it, and the global names of its environment.

    This is faster than the rendering functions of transformers and Jinja, which prepare much more for each call.
    Generation markers become ``with`` blocks, which are scopes too and need no extra call.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    compiled = _compile_jinja_template(_MARKER.sub(r"{%\1 \2with \3%}", template))
    return compiled, dict(compiled.globals)


def split(text: str, regions: Sequence[Region], weights: Iterable[float] = repeat(1.0)) -> Document:
    """The text as spans: the regions are trained, with their weights."""
    spans, done = [], 0
    for (start, end), weight in zip(regions, weights, strict=False):
        if start > done:
            spans.append(Span(text[done:start], False))
        if end > start:
            spans.append(Span(text[start:end], True, weight))
        done = max(done, end)
    if done < len(text):
        spans.append(Span(text[done:], False))
    return spans


def _covers_content(text: str, regions: Sequence[Region], messages: Messages) -> bool:
    """Whether the regions contain what the assistant wrote, as far as the template renders it unchanged.

    Inside macros, Jinja reports wrong positions of the markers: they are relative to the macro's own output.
    """
    contents = [message.get("content", "").strip() for message in messages if message["role"] == "assistant"]
    rendered = [content for content in contents if content and content in text]
    trained = [text[start:end] for start, end in regions]
    return any(trained) and (not rendered or any(content in part for content in rendered for part in trained))
