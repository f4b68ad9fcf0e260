"""What each of several processes reads of one file that they stream: bytes and seconds for one pass.

The same is measured for a file that cannot be divided (``.jsonl.gz``), which each process reads as a whole.
"""

from __future__ import annotations

import gzip
import json
import tempfile
import time
from pathlib import Path
from typing import Any


def write(directory: Path, rows: int) -> list[Path]:
    """The same rows in three files."""
    from datasets import Dataset

    texts = [f"row {number}: {'some text ' * 20}" for number in range(rows)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    (directory / "a.jsonl").write_bytes(lines)
    with gzip.open(directory / "a.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(lines)
    Dataset.from_dict({"text": texts}).to_parquet(directory / "a.parquet", batch_size=2000)
    return [directory / name for name in ("a.jsonl", "a.parquet", "a.jsonl.gz")]


def bytes_read() -> int:
    """What this process has read by system calls so far (Linux)."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def stream_parts(rows: int, processes: int) -> dict[str, Any]:
    """Of each file: its size, and for each process the share of it that it reads, its rows, and the time."""
    from sftkit.data.report import Report
    from sftkit.data.stream_rows import FileRows, Pass

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        for path in write(Path(directory), rows):
            size, shares, numbers, seconds = path.stat().st_size, [], [], []
            for rank in range(processes):
                source = FileRows.of([str(path)], "train", "data.train")
                before, start = bytes_read(), time.perf_counter()
                numbers.append(sum(1 for _ in source.rows(Pass(0, 0, 0, rank, processes), Report("data.train"), [])))
                seconds.append(round(time.perf_counter() - start, 2))
                shares.append(round((bytes_read() - before) / size, 4))
            found[path.name] = {"bytes": size, "share read": shares, "rows": numbers, "seconds": seconds}
            assert sum(numbers) == rows
    return found
