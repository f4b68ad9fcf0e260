"""What can be seen of local files without preparing them: where they are, their columns, their number of rows."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

MOST_BYTES = 200_000_000  # of a file that is read as a whole, which takes seconds


@dataclass(frozen=True)
class Places:
    """Where relative paths of a configuration may begin, and where those of the new one do.

    Attributes:
        source: directory of the file that is translated.
        target: directory of the new file.
    """

    source: Path
    target: Path

    def find(self, name: Any) -> Path | None:
        """An existing file or directory, as the other tool would find it; else beside the file that is translated."""
        if not isinstance(name, str) or not name or "://" in name:
            return None
        found = (base / os.path.expanduser(name) for base in (Path.cwd(), self.source))
        return next((path for path in found if path.exists()), None)

    def name(self, name: str) -> str:
        """The name for the new configuration: relative to it where that is possible; names of the hub are unchanged."""
        path = self.find(name)
        if path is None or os.path.isabs(os.path.expanduser(name)):
            return name
        return os.path.relpath(os.path.abspath(path), os.path.abspath(self.target))

    def may_have_experts(self, model: Any) -> bool:
        """Whether a model can be a mixture of experts: a local one says so, any other may."""
        path = self.find(model)
        if path is None or not (path / "config.json").is_file():
            return True
        return "expert" in (path / "config.json").read_text(encoding="utf-8")

    def layers(self, model: Any) -> int:
        """The number of layers of a local model; 0 if it is not known."""
        path = self.find(model)
        if path is None or not (path / "config.json").is_file():
            return 0
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config") or config
        return next((int(config[key]) for key in ("num_hidden_layers", "num_layers", "n_layer") if config.get(key)), 0)

    def rows(self, name: Any) -> Iterator[dict[str, Any]]:
        """The rows of a local JSON, JSON lines or CSV file; none of any other."""
        path = self.find(name)
        if path is None:
            return
        try:
            for file in [path] if path.is_file() else _training_files(path):
                yield from _rows(file)
        except (OSError, ValueError, csv.Error):
            return

    def columns(self, name: Any) -> dict[str, Any]:
        """The columns of a local file, each with a value of its first rows; empty if they cannot be seen."""
        found: dict[str, Any] = {}
        for row in islice(self.rows(name), 20):
            found |= {key: value for key, value in row.items() if found.get(key) is None}
        return found

    def count(self, name: Any) -> int:
        """The number of rows of a local file; 0 if it is not known."""
        return sum(1 for _ in self.rows(name))


def _training_files(directory: Path) -> list[Path]:
    files = sorted(file for file in directory.iterdir() if file.is_file() and not file.name.startswith("."))
    return [file for file in files if "train" in file.stem] or files


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix in (".csv", ".tsv"):
            yield from csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        elif path.suffix in (".jsonl", ".ndjson"):
            yield from (row for line in file if line.strip() and isinstance(row := json.loads(line), dict))
        elif path.suffix == ".json" and path.stat().st_size <= MOST_BYTES:
            text = file.read()
            try:
                value = json.loads(text)
            except ValueError:  # one object per line
                value = [json.loads(line) for line in text.splitlines() if line.strip()]
            yield from (row for row in (value if isinstance(value, list) else []) if isinstance(row, dict))
