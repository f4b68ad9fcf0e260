"""A few prepared rows, kept in the run directory so that a report shows what was trained when the data is gone."""

from __future__ import annotations

import json
import logging
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.checkpoints.files import write_text
from sftkit.run.rows import TokenRow, read_batch

if TYPE_CHECKING:
    from sftkit.run.stages import PreparedRun

logger = logging.getLogger("sftkit")

ROWS = "rows.jsonl"
TOKENS = 800  # of a row that are kept, from its start
SETS = 4  # evaluation sets of which a row is kept


def sample_rows(run: PreparedRun) -> list[dict[str, Any]]:
    """Some rows of a run as its collator batches them: ``run.sample_rows`` to train on, and one of each evaluation set.

    Returns:
        The rows, as plain data: ``split``, ``title``, and ``runs`` of ``text`` of the same ``kind`` and ``weight``, of
        which one ``opens`` each later document of a packed row.
    """
    found = []
    number = run.config.run.sample_rows
    wanted = {split: number if split == "train" else 1 for split in ["train", *list(run.data.eval)[:SETS]]}
    for split, most in wanted.items() if number else ():
        rows = run.data.splits[split]
        try:
            for first, example in _spread(rows, most):
                read = read_batch([example], run.collator, run.tokenizer, first, TOKENS)
                found += [_plain(split, row) for row in read]
        except Exception as error:  # of a collator of the user's, which may make batches of any kind
            logger.warning("no rows of %s are kept for a report: %s: %s", split, type(error).__name__, error)
    return found


def _spread(rows: Any, number: int) -> list[tuple[int, dict[str, Any]]]:
    """Rows from all over the data, with their numbers from 0; of a stream, the first ones."""
    if not hasattr(rows, "__len__"):
        return list(enumerate(islice(rows.first.rows, number)))
    places = sorted({at * len(rows) // number for at in range(number)})
    return [(place, rows[place]) for place in places]


def _plain(split: str, row: TokenRow) -> dict[str, Any]:
    runs = []
    for pieces in row.runs:
        first = pieces[0]
        if first.kind == "padding":
            continue
        text = "".join(piece.text for piece in pieces)
        runs.append({"text": text, "kind": first.kind, "weight": first.weight, "opens": first.opens})
    return {"split": split, "title": row.title, "runs": runs}


def write_sample_rows(directory: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows of `sample_rows` into a run directory."""
    write_text(directory / ROWS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
