"""Checks the prepared data: what it contains, and how preparation changed it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sftkit.api import (
    FILTERED,
    WEIGHTED_TOKENS,
    DatasetStats,
    Status,
    Verdict,
    describe_notes,
    model_shape,
    notes_of,
    without_fix,
)

if TYPE_CHECKING:
    import numpy as np

    from sftkit.api import PreparedRun

CUT_SHARE = 0.05  # of completions: a few long rows are normal, but one in twenty deserves a look
CUT_MOST = 0.5  # of completions: above this, the model would learn that answers stop in the middle
DROPPED_SHARE = 0.05  # of rows, for any reason but that a filter was asked to drop them
DUPLICATE_SHARE = 0.05  # of rows: real instruction data has a few percent
LEAK_SHARE = 0.01  # of held-out rows: above this, the evaluation measures memorisation
FILL_LEAST = 0.8  # of packed rows: below this, a fifth of the work is spent on padding
AT_ONCE = 4096  # rows whose documents are hashed at once


def data_verdicts(run: PreparedRun) -> Iterator[Verdict]:
    """Verdicts on each split, and on rows that the splits share."""
    from sftkit_plugins.checks.tokens import token_verdicts

    for split, stats in run.data.stats.items():
        done = Counter(run.data.counts.by_split[split])
        yield _rows(split, stats, done)
        yield from _notes(split, done)
        if weighted := done[WEIGHTED_TOKENS]:
            what = f"{split}: {weighted:,} of {stats.trained:,} trained tokens have a weight other than 1"
            yield Verdict("weights", "ok", what)
        yield from _lengths(split, stats, done, run)
        yield from token_verdicts(split, stats, done, run)
        if split in run.data.described:  # not of a stream, which may begin again within a window
            yield _duplicates(split, stats)
            yield from _fill(split, run)
    yield from _leaks(run)


def _rows(split: str, stats: DatasetStats, done: Counter[str]) -> Verdict:
    lost = {what: number for what, number in done.items() if "dropped" in what or "skipped" in what}
    read = done["rows read"]
    what = f"{split}: {read:,} rows, {stats.tokens:,} tokens, {stats.trained / max(stats.tokens, 1):.1%} trained"
    if lost:
        what += "; " + "; ".join(f"{number:,} {name}" for name, number in lost.items())
    unasked = sum(number for name, number in lost.items() if not name.startswith(FILTERED))
    if unasked > DROPPED_SHARE * max(read, 1):
        return Verdict(
            "rows", "warn", what, "look at them with `sftkit preview --dropped`, and fix the data", f"data.{split}"
        )
    return Verdict("rows", "ok", what)


def _notes(split: str, done: Counter[str]) -> Iterator[Verdict]:
    """One verdict on all notes that need no action, and one on each of the others, whose fix the note names."""
    notes, read = notes_of(done), done["rows read"]
    if plain := {note: number for note, number in notes.items() if not without_fix(note)[1]}:
        yield Verdict("noted", "ok", f"{split}: {'; '.join(describe_notes(plain))}", details=plain)
    for note, number in notes.items():
        what, fix = without_fix(note)
        if fix:
            yield Verdict("noted", "warn", f"{split}: {number:,} of {read:,} rows: {what}", fix, f"data.{split}")


def _duplicates(split: str, stats: DatasetStats) -> Verdict:
    share = stats.duplicates / max(stats.rows, 1)
    what = f"{split}: {stats.duplicates:,} of {stats.rows:,} rows are duplicates"
    if share > DUPLICATE_SHARE:
        return Verdict("duplicates", "warn", what, "remove them, as `-p dedup` does", f"data.{split}")
    return Verdict("duplicates", "ok", what)


def _lengths(split: str, stats: DatasetStats, done: Counter[str], run: PreparedRun) -> Iterator[Verdict]:
    limit, share = run.config.data.max_length, stats.percentiles
    what = f"{split}: half of the rows have at most {share.get('p50', 0):,} tokens, 99 % {share.get('p99', 0):,}, "
    what += f"the longest {stats.longest:,} (data.max_length {limit:,})"
    cut = done["completions cut"]
    if cut:
        what += f"; {cut:,} completions were cut"
    cut_share = cut / max(stats.rows, 1)
    status: Status = "wrong" if cut_share > CUT_MOST else "warn" if cut_share > CUT_SHARE else "ok"
    fix = f"raise data.max_length to {share.get('p99', limit):,}, or set data.truncation=drop"
    yield Verdict("length", status, what, fix if status != "ok" else "", "data.max_length")
    shape = model_shape(run)
    positions = None if shape is None else shape.positions
    longest = min(stats.longest, limit)
    if positions and longest > positions:
        what = f"{split}: rows have up to {longest:,} tokens, but the model has {positions:,} positions"
        fix = f"set data.max_length={positions}"
        if "rope_scaling" in run.config.plugins:
            fix += ", or raise the factor of plugin rope_scaling"
        elif shape is not None and shape.rotary:
            fix += ", or stretch the model's rotary embeddings with -p rope_scaling"
        yield Verdict("positions", "wrong", what, fix, "data.max_length")


def _fill(split: str, run: PreparedRun) -> Iterator[Verdict]:
    if "position_ids" not in run.data.table(split).column_names:
        return
    described = run.data.described[split]
    fill = described["tokens"] / (described["rows"] * run.config.data.max_length)
    low = fill < FILL_LEAST and described["rows"] > 1
    fix = "set a data.max_length that rows fill better, or do not pack"
    yield Verdict("packing", "warn" if low else "ok", f"{split}: packed rows are {fill:.1%} full", fix if low else "")


def _leaks(run: PreparedRun) -> Iterator[Verdict]:
    import numpy as np

    held_out = [name for name in run.data.splits if name != "train"]
    if not held_out or "train" not in run.data.described:
        return
    train = np.unique(_document_hashes(run.data.table("train")))
    for name in held_out:
        own = _document_hashes(run.data.table(name))
        leaked = int(np.isin(own, train).sum())
        what = f"{name}: {leaked:,} of {len(own):,} rows are also in the training data"
        status: Status = "ok" if not leaked else "wrong" if leaked > LEAK_SHARE * len(own) else "warn"
        fix = "remove them from one of the two sets"
        if isinstance(run.config.data.eval, float):  # a random choice: every duplicate may be on both sides
            status, fix = "warn" if leaked else "ok", "remove duplicates before rows are held out, as `-p dedup` does"
        yield Verdict("held out", status, what, fix if leaked else "", "data.eval")


def _document_hashes(rows: Any) -> np.ndarray:
    """A hash (uint64) of each document, including documents that are packed into one row."""
    import numpy as np

    from sftkit.api import ATTACHED, flatten_column, hash_documents

    found = [np.zeros(0, np.uint64)]
    for start in range(0, len(rows), AT_ONCE):
        table = rows.slice(start, AT_ONCE)
        ids, offsets = flatten_column(table, "input_ids")
        if "position_ids" in table.column_names:
            offsets = np.append(np.flatnonzero(flatten_column(table, "position_ids")[0] == 0), len(ids))
        attached = table[ATTACHED].combine_chunks() if ATTACHED in table.column_names else None
        found.append(hash_documents(ids, offsets, attached))
    return np.concatenate(found)
