"""The commands and code blocks of the documentation."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "examples/README.md"]
)
#: Pages with tests of their own, which run every block of theirs.
RUN_ELSEWHERE = {
    "docs/from-trl.md": "tests/e2e/test_from_trl.py",
    "docs/hooks.md": "tests/core/test_hook_examples.py",
    "docs/quickstart.md": "tests/e2e/test_quickstart.py",
    "docs/vision.md": "tests/e2e/test_vision_docs.py",
    "docs/zh/quickstart.md": "tests/core/test_site.py",  # has the same blocks
}
PROGRAMS = ("sftkit", "make", "pip", "pytest", "torchrun", "python")
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$"
    r"|(?P<indented>(?:^ {4}[^\n]*\n)(?:^(?: {4}[^\n]*)?\n)*)",
    re.DOTALL | re.MULTILINE,
)
_HERE_DOCUMENT = re.compile(r"^cat > (\S+) <<'EOF'\n(.*?)^EOF\n", re.DOTALL | re.MULTILINE)
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*\Z")


class Block(NamedTuple):
    """A code block.

    Attributes:
        page: the page's path from the top.
        line: its first line in the page.
        language: such as ``python``; ``sh`` for indented commands.
        code: what is in it.
        not_run: why it cannot be run here; empty if it can.
    """

    page: str
    line: int
    language: str
    code: str
    not_run: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The commands of a block for the shell, one a line, without comments."""
        lines = _HERE_DOCUMENT.sub("", self.code).replace("\\\n", " ").splitlines()
        found = [_without_comment(line.strip().removeprefix("$ ")) for line in lines]
        return [line for line in found if line]

    @property
    def files(self) -> dict[str, str]:
        """The files that a block for the shell writes, as ``cat > NAME <<'EOF'``."""
        return dict(_HERE_DOCUMENT.findall(self.code)) if self.language == "sh" else {}


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, and the indented ones that are commands."""
    text, found = (ROOT / page).read_text(encoding="utf-8"), []
    for match in _FENCE.finditer(text):
        before = text[: match.start()]
        reason = _NOT_RUN.search(before)
        language, code = match["language"], match["code"]
        if match["indented"]:
            code = re.sub(r"^ {4}", "", match["indented"], flags=re.MULTILINE)
            if code.split(maxsplit=1)[0] not in PROGRAMS or not before.endswith("\n\n"):
                continue
            language = "sh"
        found.append(Block(page, before.count("\n") + 1, language, code, reason[1] if reason else ""))
    return found


def modules(page: str) -> dict[str, str]:
    """The files with Python code that a page has the reader write, by name.

    Their names are in the first line, ``# NAME.py``, or in the text around the block: "Save it as `NAME.py`".
    """
    text, found = (ROOT / page).read_text(encoding="utf-8"), {}
    for block in blocks(page):
        named = re.match(r"# ([\w/]+\.py)\b", block.code)
        if block.language == "python" and named is None:
            around = text.partition(block.code)
            named = re.match(r"```\s*(?:Save|Put|Write) (?:it|this) (?:as|into|in) `([\w/]+\.py)`", around[2])
        if block.language == "python" and named is not None:
            found[named[1]] = found.get(named[1], "") + block.code
    return found


def write_files(block: Block, replace: bool = True) -> None:
    """Write the files of a block into the working directory; with `replace`, also those that are there."""
    for name, text in block.files.items():
        if replace or not Path(name).exists():
            Path(name).write_text(text, encoding="utf-8")


def _without_comment(line: str) -> str:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a quotation mark that is closed in a later line
        return line
    return shlex.join(words) if "#" in line else line
