# ruff: noqa: N806 (suffixes are shapes)
"""Which rows share a run of words with an evaluation set.

Legend: W words of a batch, P places in them at which a run may begin, G distinct runs of the evaluation sets.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sftkit.api import Columns, RowFilter, Skipped, chosen_columns, hash_ngrams, texts_of, words_of

logger = logging.getLogger("sftkit")


@dataclass
class SharedWords(RowFilter):
    """Drops each row of which a text has ``n`` words in succession that a text of an evaluation set has, too.

    Args:
        n: the number of words.
        columns: the columns of the training rows to look at; None for all.
        common: words that more than this many evaluation rows share are ignored.
        own_sets: whether the evaluation sets of the run are compared.
    """

    n: int
    columns: Sequence[str] | None
    common: int
    own_sets: bool
    _sets: list[str] = field(default_factory=list)
    _runs: list[tuple[Any, int]] = field(
        default_factory=list
    )  # of each evaluation row: its runs, the number of its set
    _rows: Counter[str] = field(default_factory=Counter)
    _short: Counter[str] = field(default_factory=Counter)
    _index: tuple[Any, Any] | None = None

    @property
    def reads_held_out(self) -> bool:
        """Whether the evaluation sets of the run are compared."""
        return self.own_sets

    def see_held_out(self, split: str, rows: Columns) -> None:
        """Note the runs of words of an evaluation set."""
        import numpy as np

        if split not in self._sets:
            self._sets.append(split)
        for values in zip(*rows.values(), strict=True):
            runs = [hash_ngrams(words_of(text), self.n) for text in texts_of(values)]
            runs_P = np.unique(np.concatenate(runs)) if runs else np.zeros(0, np.uint64)
            self._rows[split] += 1
            self._short[split] += not len(runs_P)
            self._runs.append((runs_P, self._sets.index(split)))

    def __call__(self, rows: Columns) -> list[Skipped | None]:
        """Drop the rows that share a run of words."""
        import numpy as np

        known_G, sets_G = self._known()
        names = chosen_columns(rows, self.columns, "plugin decontaminate, option columns")
        values = list(zip(*(rows[name] for name in names), strict=True))
        decided: list[Skipped | None] = [None] * len(values)
        texts = [(at, words_of(text)) for at, row in enumerate(values) for text in texts_of(row)]
        words = [word for _, some in texts for word in some]
        runs_P = hash_ngrams(words, self.n)
        if not len(known_G) or not len(runs_P):
            return decided
        text_W = np.repeat(np.arange(len(texts)), [len(some) for _, some in texts])
        whole_P = text_W[: len(runs_P)] == text_W[self.n - 1 :]  # within one text
        at_P = np.minimum(np.searchsorted(known_G, runs_P), len(known_G) - 1)
        for place in np.flatnonzero(whole_P & (known_G[at_P] == runs_P)).tolist():
            row = texts[text_W[place]][0]
            if decided[row] is None:
                reason = f"shares {self.n} words with {self._sets[sets_G[at_P[place]]]}"
                decided[row] = Skipped(reason, f"“{' '.join(words[place : place + self.n])}”")
        return decided

    def _known(self) -> tuple[Any, Any]:
        """The runs of words to look for, sorted, and the number of the first set that has each."""
        import numpy as np

        if self._index is None:
            runs = [runs_P for runs_P, _ in self._runs]
            all_runs = np.concatenate([np.zeros(0, np.uint64), *runs])
            sets = np.repeat(np.array([at for _, at in self._runs], np.int64), [len(runs_P) for runs_P in runs])
            known_G, first_G, rows_G = np.unique(all_runs, return_index=True, return_counts=True)
            rare_G = rows_G <= self.common
            self._report(int((~rare_G).sum()))
            self._index, self._runs = (known_G[rare_G], sets[first_G[rare_G]]), []
        return self._index

    def _report(self, ignored: int) -> None:
        for name, number in self._rows.items():
            if short := self._short[name]:
                what = f"{short:,} of {number:,} rows of {name} have no {self.n} words in succession"
                logger.warning("decontaminate: %s, and are not compared -> use a smaller ngram", what)
        if ignored:
            logger.info("decontaminate: %s runs of words are in too many evaluation rows to count", f"{ignored:,}")
