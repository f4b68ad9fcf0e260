"""Training rows that share text with an evaluation set are dropped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sftkit.api import Field, Plugin, Problem, chosen_columns, data_batches, dataclass, hookimpl

if TYPE_CHECKING:
    from sftkit.api import RowFilter, RunConfig


@dataclass(frozen=True, kw_only=True)
class Decontaminate(Plugin):
    """Drops training rows that share a run of words with an evaluation set.

    Source: Brown et al., 2020, Language Models are Few-Shot Learners (arXiv 2005.14165), appendix C.
    """

    paths: ClassVar[tuple[str, ...]] = ("against",)

    ngram: Annotated[int, Field(ge=2, description="number of words in succession that a row must not share")] = 13
    against: Annotated[
        list[str], Field(description="further evaluation sets: files, directories, patterns, URLs or names of the hub")
    ] = Field(default_factory=list)
    own_sets: Annotated[bool, Field(description="compare with the evaluation sets of the run")] = True
    columns: Annotated[
        list[str] | None, Field(min_length=1, description="columns of the training rows to look at; by default all")
    ] = None
    common: Annotated[
        int, Field(ge=1, description="ignore words that more than this many evaluation rows share, such as a preamble")
    ] = 10

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Nothing to compare with."""
        if not self.against and not (self.own_sets and config.data.eval is not None):
            fix = "set data.eval, or name files in against"
            yield Problem("there is no evaluation set to compare with", "plugin decontaminate", fix)

    @hookimpl
    def filter_rows(self, columns: Any, config: RunConfig) -> RowFilter:
        """Compares rows with the evaluation sets.

        Raises:
            DataError: if there is no such column, or a file cannot be read.
        """
        from sftkit_plugins.decontaminate.shared_words import SharedWords

        chosen_columns(columns, self.columns, "plugin decontaminate, option columns")
        made = SharedWords(self.ngram, self.columns, self.common, self.own_sets)
        for name in self.against:
            for rows in data_batches(name, config, "plugin decontaminate, option against"):
                made.see_held_out(Path(name).name, rows)
        return made
