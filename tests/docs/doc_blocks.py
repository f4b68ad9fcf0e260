"""The commands and code blocks of the documentation."""

from __future__ import annotations

import itertools
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
_CALL = re.compile(r"""(?:[A-Z_]+=\S+\ )*(?P<call>(?:'[^']*'|"[^"]*"|[^'"])*?)(?:\ (?P<rest>(?:[|&>#]|2>).*))?""", re.S)
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
        """The commands of a block for the shell, each with its here-document or the lines of its quotation."""
        lines, found = iter(self.code.replace("\\\n", " ").splitlines()), []
        for line in lines:
            command = line.strip().removeprefix("$ ")
            if here := re.search(r"<<'(\w+)'$", command):
                command = "\n".join([command, *itertools.takewhile(lambda each: each != here[1], lines), here[1]])
            while _is_open(command):
                command += f"\n{next(lines)}"
            found.append(command)
        return [command for command in found if command and not command.startswith("#")]


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, and the indented ones that are commands."""
    text, found = (ROOT / page).read_text(encoding="utf-8"), []
    for match in _FENCE.finditer(text):
        before = text[: match.start()]
        reason = _NOT_RUN.search(before)
        language, code = match["language"], match["code"]
        if match["indented"]:
            code = re.sub(r"^ {4}", "", match["indented"], flags=re.MULTILINE)
            if code.split(maxsplit=1)[0] not in PROGRAMS or not (reason or before.endswith("\n\n")):
                continue
            language = "sh"
        found.append(Block(page, before.count("\n") + 1, language, code, reason[1] if reason else ""))
    return found


def named_files(page: str) -> dict[str, str]:
    """The modules and configurations that a page has the reader write, by name.

    Their names are in the first line, ``# NAME.py``, or in the text after the block: "Save it as `NAME.py`".
    """
    text, found = (ROOT / page).read_text(encoding="utf-8"), {}
    for block in blocks(page):
        if block.language in ("python", "yaml"):
            _, _, after = text.partition(block.code)
            named = re.match(r"# ([\w/-]+\.(?:py|yaml))\b", block.code) or re.match(
                r"```\s*(?:Save|Put|Write) (?:it|this) (?:as|into|in) `([\w/]+\.py)`", after
            )
            if named is not None:
                found[named[1]] = found.get(named[1], "") + block.code
    return found


def call_and_rest(command: str) -> tuple[list[str], str]:
    """The words of a command's first program, without variables, and what the shell does with its output."""
    match = _CALL.fullmatch(command)
    return shlex.split(match["call"]), match["rest"] or ""


def _is_open(command: str) -> bool:
    """Whether a quotation mark is closed in a later line."""
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return "<<" not in command
    return False
