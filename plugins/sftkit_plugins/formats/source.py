"""What the source of a chat template reveals: the variables and the texts that it looks for."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sftkit_plugins.formats.rendering import has_markers, parsed

_METHODS = {
    *("split", "rsplit", "startswith", "endswith", "replace", "find", "rfind", "index", "count", "partition"),
    *("rpartition", "removeprefix", "removesuffix"),
}
_THOUGHT = re.compile(r"think|thought|reason", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """Facts about a template.

    Attributes:
        reads: the variables that it reads.
        keywords: the texts that it looks for in contents, such as ``</think>``; what it does depends on them.
        thought_ends: those of the keywords that end a reasoning text.
        marked: whether it has generation markers.
    """

    reads: frozenset[str]
    keywords: tuple[str, ...]
    thought_ends: tuple[str, ...]
    marked: bool


@functools.lru_cache(16)
def source_of(template: str) -> Source:
    """The facts about a template that can be compiled."""
    from jinja2 import meta, nodes

    tree = parsed(template)
    named = {
        node.target.name: node.node.value
        for node in tree.find_all(nodes.Assign)
        if isinstance(node.target, nodes.Name) and isinstance(node.node, nodes.Const)
    }
    found = {text for text in _sought(tree, nodes, named) if len(text) > 1 and re.search(r"[^\w\s]", text)}
    keywords = tuple(sorted(found, key=lambda text: (-len(text), text)))
    ends = tuple(text for text in keywords if "/" in text and _THOUGHT.search(text) and not text.startswith("/"))
    return Source(frozenset(meta.find_undeclared_variables(tree)), keywords, ends, has_markers(template))


def _sought(tree: Any, nodes: Any, named: dict[str, Any]) -> Iterator[str]:
    """Texts in tests such as ``'x' in content`` and in calls such as ``content.split('x')``."""

    def text(node: Any) -> Iterator[str]:
        value = named.get(node.name) if isinstance(node, nodes.Name) else getattr(node, "value", None)
        if isinstance(value, str):
            yield value

    for node in tree.find_all(nodes.Compare):
        if any(operand.op in ("in", "notin") for operand in node.ops):
            yield from text(node.expr)
    for node in tree.find_all(nodes.Call):
        if isinstance(node.node, nodes.Getattr) and node.node.attr in _METHODS:
            for argument in node.args:
                yield from text(argument)
    for node in tree.find_all(nodes.Filter):
        if node.name == "replace":
            for argument in node.args:
                yield from text(argument)
