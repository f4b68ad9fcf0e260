"""An extension of griffe for docstrings: comments with ``#:`` above attributes, and ``::`` before blocks."""

from __future__ import annotations

import ast
from itertools import takewhile
from typing import Any

from griffe import Attribute, Docstring, Extension, Object


class Comments(Extension):
    """Takes the comment above an attribute as its docstring, and writes ``:`` where reStructuredText has ``::``."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Write the text before an indented block as Markdown has it."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("::\n\n", ":\n\n")

    def on_attribute_instance(self, *, node: ast.AST | Any, attr: Attribute, agent: Any, **_: Any) -> None:
        """Read the lines above the attribute."""
        if attr.docstring is not None or not isinstance(node, ast.stmt):
            return
        above = (line.strip() for line in reversed(attr.lines_collection[attr.filepath][: node.lineno - 1]))
        comment = [line.removeprefix("#:").strip() for line in takewhile(lambda line: line.startswith("#:"), above)]
        if comment:
            attr.docstring = Docstring("\n".join(reversed(comment)), parent=attr, parser="google")
