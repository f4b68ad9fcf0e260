"""``${NAME}`` and ``${NAME:-default}`` in the values of a YAML file: variables of the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

# A reference, an escaped ``${``, or a ``${`` that is neither.
_REFERENCE = re.compile(r"\$\$\{(?:[^{}\n]*\})?|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(:-([^{}\n]*))?\})?")
_PRIVATE = range(0xE000, 0xF8FF)  # characters that no text has, and that YAML takes as any other


class References:
    """The references in the text of a YAML file.

    YAML reads ``{`` and ``}`` as a mapping in places, so that each reference is replaced by a mark until then.

    Args:
        text: of the file.

    Attributes:
        text: the same with marks.
    """

    def __init__(self, text: str) -> None:
        self._mark = next(char for char in map(chr, _PRIVATE) if char not in text)
        self._found: list[re.Match[str]] = []
        self._marked = re.compile(f"{self._mark}([0-9]+){self._mark}")
        self.text = _REFERENCE.sub(self._masked, text)

    def _masked(self, found: re.Match[str]) -> str:
        self._found.append(found)
        return f"{self._mark}{len(self._found) - 1}{self._mark}"

    def inside(self, text: str) -> bool:
        """Whether a text has marks."""
        return self._mark in text

    def restore(self, text: str) -> str:
        """The text as it is in the file."""
        return self._marked.sub(lambda mark: self._of(mark)[0], text)

    def expand(self, text: str) -> str:
        """The text with the values of the variables; nothing takes the place of those that have none."""
        return self._marked.sub(lambda mark: _value(self._of(mark)), text)

    def refers(self, text: str) -> bool:
        """Whether the text has a reference, and not only an escaped ``${``."""
        return any(self._of(mark)[1] for mark in self._marked.finditer(text))

    def problems(self, text: str) -> Iterator[tuple[str, str]]:
        """What is wrong with the references of a text, and the fix."""
        for mark in self._marked.finditer(text):
            whole, name, default, _ = self._of(mark).group(0, 1, 2, 3)
            if whole == "${":
                what = "`${` does not begin the name of an environment variable"
                yield what, "write ${NAME} or ${NAME:-default}; for the text ${ itself, write $${"
            elif name and default is None and name not in os.environ:
                yield f"the environment variable {name} is not set", f"set it, or write ${{{name}:-default}}"

    def _of(self, mark: re.Match[str]) -> re.Match[str]:
        return self._found[int(mark[1])]


def escaped(text: str) -> str:
    """A text that means itself in a YAML file of sftkit."""
    return text.replace("${", "$${")


def _value(found: re.Match[str]) -> str:
    name, default = found[1], found[3]
    if name is None:
        return found[0].removeprefix("$")
    value = os.environ.get(name, "")
    return value or default or ""
