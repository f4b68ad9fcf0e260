"""What the benchmarks share: their flags, the finding of programs, and the table or JSON at the end."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def parse_flags(description: str) -> argparse.Namespace:
    """``--quick`` and ``--json``, the same in every benchmark."""
    return add_flags(argparse.ArgumentParser(description=description)).parse_args()


def add_flags(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The same, for a benchmark with flags of its own besides."""
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: within 50 s on two cores")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


def program(name: str) -> str:
    """The path of a program that is installed beside this Python."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        sys.exit(
            f"error: {path} does not exist -> run this with a Python where {name} is installed, as `make bench` does"
        )
    return str(path)


def median(values: Sequence[float]) -> float:
    """The median, to four digits."""
    return float(f"{statistics.median(values):.4g}")


def versions(*names: str) -> str:
    """``Python 3.11.7, sftkit 0.1.0, trl 1.16.0``."""
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {metadata.version(name)}" for name in names)])


def report(
    result: dict[str, Any], title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], as_json: bool
) -> None:
    """Print the result as one JSON object, or as a table for people."""
    if as_json:
        print(json.dumps(result))
        return
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, soft_wrap=True).print(table)
