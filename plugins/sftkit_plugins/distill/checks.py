"""Whether the data of a run fits its teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sftkit.api import TokenStore, Verdict, load_tokenizer, tokens_by_id, vocabulary_difference, vocabulary_digest
from sftkit_plugins.distill.teacher import TEACHER, teacher_config

if TYPE_CHECKING:
    from sftkit.api import PreparedRun
    from sftkit_plugins.distill import Distill

FIX_TOKENIZER = "use a teacher with the tokenizer of the student, also without tokens that plugins add to one of them"
FIX_ROWS = "write them again with `sftkit distill-rows` and this configuration"


def teacher_verdict(plugin: Distill, run: PreparedRun) -> Verdict:
    """Whether each id is the same token for the teacher."""
    other = load_tokenizer(teacher_config(plugin, run.config))
    if difference := vocabulary_difference(run.tokenizer, other):
        return Verdict("teacher", "wrong", f"its tokenizer is another one: {difference}", FIX_TOKENIZER, TEACHER)
    return Verdict("teacher", "ok", f"its tokenizer has the same {len(tokens_by_id(other)):,} tokens", where=TEACHER)


def stored_verdicts(plugin: Distill, run: PreparedRun) -> Iterator[Verdict]:
    """Whether the values are of this tokenizer, and of each document that is known before the run."""
    where = "plugin distill, option rows"
    store = TokenStore.open(plugin.rows, where)
    if store.about["vocabulary"] != vocabulary_digest(run.tokenizer):
        what = f"its values are of another tokenizer, that of {store.about['teacher']}"
        yield Verdict("teacher", "wrong", what, FIX_TOKENIZER, where)
        return
    for split, rows in run.data.splits.items():
        if not hasattr(rows, "with_format"):
            yield Verdict("teacher", "ok", f"the rows of {split} are looked up as they come", where=where)
            continue
        number, first = store.missing(rows)
        if number:
            what = f"{number:,} of {len(rows):,} rows of {split} have no values in it; {first}"
            yield Verdict("teacher", "wrong", what, FIX_ROWS, where)
        else:
            what = f"the top {store.about['k']} of {store.about['teacher']} for {len(rows):,} rows of {split}"
            yield Verdict("teacher", "ok", what, where=where)
