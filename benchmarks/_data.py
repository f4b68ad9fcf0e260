"""Real data for the benchmarks of data preparation."""

from __future__ import annotations

import json
import sys
from pathlib import Path

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def code_alpaca() -> list[tuple[str, str]]:
    """Questions and answers from both Code Alpaca files."""
    if not SHARED.is_dir():
        sys.exit(f"error: {SHARED} does not exist -> this benchmark needs the real data next to the project")
    rows = [
        row
        for name in ("code_alpaca_2k.json", "new_codealpaca.json")
        for row in json.loads((SHARED / name).read_text(encoding="utf-8"))
    ]
    return [(f"{row['instruction']}\n{row['input']}\n", row["output"]) for row in rows]


def distinct_rows(times: int = 4) -> list[tuple[str, str]]:
    """Code Alpaca several times, without a repeated text: each question is numbered, and gets another answer each time.

    A cache of whole texts finds nothing in them.
    """
    rows = code_alpaca()
    number = len(rows)
    return [
        (f"Task {time * number + at}: {question}", rows[(at + time * (number // times)) % number][1])
        for time in range(times)
        for at, (question, _) in enumerate(rows)
    ]
