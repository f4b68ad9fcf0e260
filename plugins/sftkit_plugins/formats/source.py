"""What the source of a chat template reveals: the variables and the texts that it looks for."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sftkit_plugins.formats.rendering import has_markers, parsed

_CUTTING = {
    *("split", "rsplit", "startswith", "endswith", "find", "rfind", "index", "count", "partition", "rpartition"),
    *("removeprefix", "removesuffix"),
}
_THOUGHT = re.compile(r"think|thought|reason", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """Facts about a template.

    Attributes:
        reads: the variables that it reads.
        keywords: the texts that it looks for in contents, such as ``</think>``; what it does depends on them.
        thought_ends: those of the keywords that end a reasoning text.
        characters: the single characters that it looks for in arguments of tool calls.
        marked: whether it has generation markers.
    """

    reads: frozenset[str]
    keywords: tuple[str, ...]
    thought_ends: tuple[str, ...]
    characters: frozenset[str]
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
    sought, replaced = _sought(tree, nodes, named)
    # a single character that is replaced, such as a quotation mark, is escaped
    found = {text for text in sought | {text for text in replaced if len(text) > 1} if re.search(r"[^\w\s]", text)}
    characters = frozenset(text for text in sought if len(text) == 1 and text.isascii() and not text.isalnum())
    found -= characters
    keywords = tuple(sorted(found, key=lambda text: (-len(text), text)))
    ends = tuple(text for text in keywords if "/" in text and _THOUGHT.search(text) and not text.startswith("/"))
    reads = frozenset(meta.find_undeclared_variables(tree))
    return Source(reads, keywords, ends, characters - {" "}, has_markers(template))


def _sought(tree: Any, nodes: Any, named: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Texts that the template looks for, as in ``'x' in content`` or ``content.split('x')``, and those it replaces."""

    def texts(found: Iterable[Any]) -> set[str]:
        values = [named.get(getattr(node, "name", ""), getattr(node, "value", None)) for node in found]
        return {value for value in values if isinstance(value, str)}

    compares = tree.find_all(nodes.Compare)
    tested = [node.expr for node in compares if any(operand.op in ("in", "notin") for operand in node.ops)]
    calls = [(getattr(node.node, "attr", ""), node.args) for node in tree.find_all(nodes.Call)]
    calls += [(node.name, node.args) for node in tree.find_all(nodes.Filter)]
    cut = [argument for name, arguments in calls if name in _CUTTING for argument in arguments]
    replaced = [argument for name, arguments in calls if name == "replace" for argument in arguments[:1]]
    return texts([*tested, *cut]), texts(replaced)
