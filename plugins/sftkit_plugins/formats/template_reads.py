"""What a chat template reads: which keys of messages, which variables, and what it does with reasoning.

The keys are those that its source reads of a message. A variable is a message if the source reads its role or content,
or if it goes through a variable named like ``messages``.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sftkit_plugins.formats.thoughts import FIELDS

logger = logging.getLogger("sftkit")

_REASON = "\ue0f8"


@dataclass(frozen=True)
class TemplateReads:
    """What one template, or several by name, reads.

    Attributes:
        keys: the keys of messages; None if it writes messages as a whole, and so reads every key.
        variables: the variables that it does not set itself.
        moves_reasoning: whether a ``<think>`` block in the content belongs into the field for reasoning: the template
            reads that field, and writes it or a block of its own.
        moves_empty: whether a block without text stands for no reasoning. It does not if the template writes
            ``<think>`` blocks, but none without text.
    """

    keys: frozenset[str] | None = frozenset()
    variables: frozenset[str] = frozenset()
    moves_reasoning: bool = False
    moves_empty: bool = False


def reads_of(template: str | Mapping[str, str], special_tokens: Mapping[str, Any]) -> TemplateReads:
    """What a template reads; with several, what any of them reads."""
    sources = [template] if isinstance(template, str) else list(template.values())
    keys: set[str] | None = set()
    variables: set[str] = set()
    for source in sources:
        found, names = _source_reads(source)
        keys = None if keys is None or found is None else keys | found
        variables |= names
    texts = [_rendered(source, special_tokens, dict.fromkeys(FIELDS, _REASON)) for source in sources]
    empty = [_rendered(source, special_tokens, {}) for source in sources]
    reads = keys is None or not keys.isdisjoint(FIELDS)
    moves = reads and all(_REASON in text or "<think>" in none for text, none in zip(texts, empty, strict=True))
    same = all("<think>" not in text or "</think>" in none for text, none in zip(texts, empty, strict=True))
    return TemplateReads(None if keys is None else frozenset(keys), frozenset(variables), moves, moves and same)


def _rendered(source: str, special_tokens: Mapping[str, Any], reasoning: Mapping[str, str]) -> str:
    """A short conversation, with some fields for reasoning; empty text if the template rejects it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **reasoning}]
    try:
        texts, _ = render_jinja_template(conversations=[messages], chat_template=source, **special_tokens)
    except Exception as error:  # a template runs the user's Jinja, which may raise anything
        logger.debug("the chat template rejects a conversation with reasoning: %s", error)
        return ""
    return str(texts[0])


@functools.lru_cache(8)
def _source_reads(source: str) -> tuple[frozenset[str] | None, frozenset[str]]:
    from jinja2 import meta, nodes

    tree = _parsed(source)
    if tree is None:
        return None, frozenset()
    read = [(base, key) for node in tree.find_all(nodes.Node) for base, key in _key_reads(node)]
    messages = {base for base, key in read if key in ("role", "content") or "messages[]" in base}
    messages |= {loop.target.name for loop in tree.find_all(nodes.For) if _is_messages(loop)}
    if any(_name(node) in messages for node in _written(tree)):
        return None, frozenset(meta.find_undeclared_variables(tree))
    keys = frozenset(key for base, key in read if base in messages)
    return keys, frozenset(meta.find_undeclared_variables(tree))


def _parsed(source: str) -> Any:
    """The syntax tree; None if it cannot be parsed, which an error says when a row is rendered."""
    from jinja2 import TemplateSyntaxError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag ``{% generation %}`` of transformers."""

        tags = {"generation"}  # noqa: RUF012 (an attribute of jinja2)

        def parse(self, parser: Any) -> Any:
            parser.stream.skip(1)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    try:
        return ImmutableSandboxedEnvironment(extensions=[loopcontrols, Generation]).parse(source)
    except TemplateSyntaxError:
        return None


def _key_reads(node: Any) -> Iterator[tuple[str, str]]:
    """The variable and the key, if the node reads a key of a variable: ``m.key``, ``m['key']`` or ``m.get('key')``."""
    from jinja2 import nodes

    key: Any = None
    if isinstance(node, nodes.Getattr):
        key = node.attr
    elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        key = node.arg.value
    elif (
        isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) and node.node.attr == "get" and node.args
    ):
        key, node = getattr(node.args[0], "value", None), node.node
    base = _name(getattr(node, "node", None))
    if base and isinstance(key, str):
        yield base, key


def _name(node: Any) -> str:
    """What identifies a variable, or an item of a list in a variable; empty text for other expressions."""
    from jinja2 import nodes

    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.Getattr) and _name(node.node) in ("loop", "ns", "namespace"):
        return f"{_name(node.node)}.{node.attr}"
    is_key = isinstance(node, nodes.Getitem) and isinstance(getattr(node.arg, "value", None), str)
    if isinstance(node, nodes.Getitem) and not is_key and (inner := _name(node.node)):
        return f"{inner}[]"
    return ""


def _is_messages(loop: Any) -> bool:
    from jinja2 import nodes

    over = loop.iter
    while isinstance(over, nodes.Getitem | nodes.Filter):
        over = over.node
    return isinstance(loop.target, nodes.Name) and "messages" in _name(over)


def _written(tree: Any) -> Iterator[Any]:
    """The values that are written, or given to a filter that writes them, as a whole."""
    from jinja2 import nodes

    for output in tree.find_all(nodes.Output):
        yield from output.nodes
    for filtered in tree.find_all(nodes.Filter):
        if filtered.name in ("tojson", "string", "items", "dictsort"):
            yield filtered.node
