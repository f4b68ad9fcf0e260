"""What the data is like, and what became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sftkit.api import WEIGHTED_TOKENS, DatasetStats, hash_documents
from sftkit_commands.check.verdict import Status, Verdict

if TYPE_CHECKING:
    import numpy as np

    from sftkit.api import PreparedRun

CUT_SHARE = 0.05  # of completions: a few long rows are the rule, one in twenty is a choice to look at
CUT_MOST = 0.5  # of completions: the model would learn that answers end in the middle
DROPPED_SHARE = 0.05  # of rows, for whatever reason
TWICE_SHARE = 0.05  # of rows; real instruction data has up to some per cent
LEAK_SHARE = 0.01  # of held-out rows: the evaluation no longer measures what is not trained on
FILL_LEAST = 0.8  # of packed rows: with less, a fifth of the work is on padding
AT_ONCE = 4096  # packed rows whose documents are compared at once


def data_verdicts(prepared: PreparedRun) -> Iterator[Verdict]:
    """Verdicts on each split, and between them."""
    for split, stats in prepared.data.stats.items():
        done = Counter(prepared.data.counts.by_split[split])
        yield _rows(split, stats, done)
        if weighted := done[WEIGHTED_TOKENS]:
            told = f"{split}: {weighted:,} of {stats.trained:,} trained tokens have another weight than 1"
            yield Verdict("weights", "ok", told)
        yield from _lengths(split, stats, done, prepared)
        yield from _special_tokens(split, stats, prepared)
        share = stats.duplicates / max(stats.rows, 1)
        told = f"{split}: {stats.duplicates:,} of {stats.rows:,} rows are there more than once"
        yield Verdict(
            "duplicates", "warn" if share > TWICE_SHARE else "ok", told, _if(share > TWICE_SHARE, "drop them")
        )
        yield from _fill(split, prepared)
    yield from _leaks(prepared)


def _rows(split: str, stats: DatasetStats, done: Counter[str]) -> Verdict:
    lost = sum(number for what, number in done.items() if "dropped" in what or "skipped" in what)
    read = done["rows read"]
    told = f"{split}: {read:,} rows, {stats.tokens:,} tokens, {stats.trained / max(stats.tokens, 1):.1%} trained"
    if lost:
        reasons = "; ".join(f"{n:,} {what}" for what, n in done.items() if "dropped" in what or "skipped" in what)
        told += f"; {reasons}"
    few = lost > DROPPED_SHARE * max(read, 1)
    return Verdict(
        "rows", "warn" if few else "ok", told, _if(few, "look at them with sftkit preview, or mend the data")
    )


def _lengths(split: str, stats: DatasetStats, done: Counter[str], prepared: PreparedRun) -> Iterator[Verdict]:
    limit = prepared.config.data.max_length
    p = stats.percentiles
    told = f"{split}: half of the rows have at most {p.get('p50', 0):,} tokens, 99 % {p.get('p99', 0):,}, "
    told += f"the longest {stats.longest:,} (data.max_length {limit:,})"
    cut = done["completions cut"]
    share = cut / max(stats.rows, 1)
    if cut:
        told += f"; {cut:,} completions cut, and their EOS with them"
    status: Status = "wrong" if share > CUT_MOST else "warn" if share > CUT_SHARE else "ok"
    fix = f"raise data.max_length to {p.get('p99', limit):,}, or set data.truncation=drop"
    yield Verdict("length", status, told, _if(status != "ok", fix))
    positions = _positions(prepared)
    longest = min(stats.longest, limit)
    if positions and longest > positions:
        what = f"{split}: rows of {longest:,} tokens, and the model knows {positions:,} positions"
        yield Verdict("positions", "wrong", what, f"set data.max_length={positions}")


def _special_tokens(split: str, stats: DatasetStats, prepared: PreparedRun) -> Iterator[Verdict]:
    tokenizer = prepared.tokenizer
    if tokenizer.eos_token_id is None:
        yield Verdict(
            "EOS", "wrong", "the tokenizer has no EOS token: the model cannot end", "set one, as -p chatml does"
        )
    else:
        share = stats.eos_trained / max(stats.rows, 1)
        told = f"{split}: EOS {tokenizer.eos_token!r} is trained in {share:.1%} of the rows"
        fix = "make the template end answers with the EOS token, or make what it writes the EOS, as -p chatml does"
        yield Verdict("EOS", "wrong" if not stats.eos_trained else "ok", told, _if(not stats.eos_trained, fix))
    if stats.bos_doubled:
        told = f"{split}: {stats.bos_doubled:,} rows begin with BOS twice"
        yield Verdict("BOS", "wrong", told, "take the BOS out of the data or of the chat template")
    elif stats.without_bos and _adds_bos(tokenizer):
        told = f"{split}: {stats.without_bos:,} rows do not begin with BOS, which the tokenizer puts in front of text"
        yield Verdict("BOS", "warn", told, "write bos_token at the start of the chat template")
    if split == "train" and tokenizer.pad_token_id is None:
        yield Verdict("padding", "ok", "there is no pad token: EOS pads, and is not trained where it does")


def _fill(split: str, prepared: PreparedRun) -> Iterator[Verdict]:
    rows = prepared.data.splits[split]
    if "position_ids" not in rows.column_names:
        return
    told = prepared.data.described[split]
    fill = told["tokens"] / (told["rows"] * prepared.config.data.max_length)
    low = fill < FILL_LEAST and told["rows"] > 1
    fix = "choose a data.max_length that the rows fill, or drop packing"
    yield Verdict("packing", "warn" if low else "ok", f"{split}: packed rows are {fill:.1%} full", _if(low, fix))


def _leaks(prepared: PreparedRun) -> Iterator[Verdict]:
    import numpy as np

    held_out = prepared.data.eval
    if not held_out or "train" not in prepared.data.described:
        return
    train = np.unique(_document_hashes(prepared.data.train))
    for name, rows in held_out.items():
        own = _document_hashes(rows)
        leaked = int(np.isin(own, train).sum())
        told = f"{name}: {leaked:,} of {len(own):,} rows are in the training data"
        status: Status = "wrong" if leaked > LEAK_SHARE * len(own) else "warn" if leaked else "ok"
        yield Verdict("held out", status, told, _if(leaked, "take them out of one of the two"))


def _document_hashes(rows: Any) -> np.ndarray:
    """A hash of each document, also where several are packed into a row."""
    import numpy as np

    from sftkit.api import ATTACHED, flatten_column

    found = [np.zeros(0, np.uint64)]
    arrow = rows.with_format("arrow")
    for start in range(0, len(rows), AT_ONCE):
        table = arrow[start : start + AT_ONCE]
        ids, offsets = flatten_column(table, "input_ids")
        if "position_ids" in table.column_names:
            offsets = np.append(np.flatnonzero(flatten_column(table, "position_ids")[0] == 0), len(ids))
        attached = table[ATTACHED].combine_chunks() if ATTACHED in table.column_names else None
        found.append(hash_documents(ids, offsets, attached))
    return np.concatenate(found)


def _adds_bos(tokenizer: Any) -> bool:
    return tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _positions(prepared: PreparedRun) -> int | None:
    """The model's learned positions, from its configuration alone; None where that cannot be known."""
    from sftkit.api import model_config

    config = model_config(prepared.config.model.name, prepared.config.model.trust_remote_code)
    return getattr(config, "max_position_embeddings", None) if config is not None else None


def _if(condition: object, text: str) -> str:
    return text if condition else ""
