"""What scripts write into pages, between two marks of each page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def between(path: Path, text: str, start: str, end: str, block: str) -> str:
    """The text of a page with this block between the two marks.

    Raises:
        ValueError: if it does not have each mark once.
    """
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"{path} needs the lines {start} and {end}, once each")
    before, _, rest = text.partition(start)
    return f"{before}{start}\n{block}\n{end}{rest.partition(end)[2]}"


def write(description: str, script: str, made: Callable[[], Mapping[Path, str]]) -> None:
    """Write the pages that differ; with ``--check``, fail if one does.

    Args:
        description: the docstring of the script.
        script: its name.
        made: makes the text of each page.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page differs")
    check = parser.parse_args().check
    try:
        pages = made()
    except ValueError as error:
        sys.exit(f"error: {error}")
    for path, text in pages.items():
        if text == path.read_text(encoding="utf-8"):
            continue
        if check:
            sys.exit(f"error: {path.relative_to(ROOT)} is out of date -> run python scripts/{script}")
        path.write_text(text, encoding="utf-8")
