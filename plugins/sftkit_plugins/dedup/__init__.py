"""Training rows that repeat an earlier one are dropped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from sftkit.api import Field, Plugin, Problem, chosen_columns, dataclass, hookimpl, requirement_problem

if TYPE_CHECKING:
    from sftkit.api import RowFilter, RunConfig

PACKAGE = "datasketch>=2"


@dataclass(frozen=True, kw_only=True)
class Dedup(Plugin):
    """Drops training rows that repeat an earlier one, exactly or nearly.

    Sources: Lee et al., 2021, Deduplicating Training Data Makes Language Models Better (arXiv 2107.06499);
    Broder, 1997, On the resemblance and containment of documents (MinHash, by the package datasketch).
    """

    columns: Annotated[
        list[str] | None, Field(min_length=1, description="columns that are compared; by default all of a row")
    ] = None
    ignore_case: Annotated[bool, Field(description="upper and lower case letters are equal")] = False
    ignore_space: Annotated[
        bool, Field(description="any run of spaces and line breaks is one space, and none at either end of a text")
    ] = False
    near: Annotated[
        float | None,
        Field(gt=0, le=1, description="also drop rows that are at least this similar to an earlier one, such as 0.8"),
    ] = None
    ngram: Annotated[int, Field(ge=1, description="near: words of the n-grams that two rows are compared by")] = 5
    permutations: Annotated[
        int, Field(ge=16, le=1024, description="near: permutations of MinHash; more find more, and take longer")
    ] = 128

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """A package that is not installed, and streams."""
        where = "plugin dedup, option near"
        if self.near is not None and (problem := requirement_problem(PACKAGE, where)):
            yield Problem(f"near duplicates: {problem.what}", where, problem.fix, ("plugins", "dedup", "near"))
        if config.data.streaming:
            what = "plugin dedup remembers rows, and a stream resumes at any row and repeats them"
            fix = "set data.streaming=false, or remove duplicates from the files before"
            yield Problem(what, "data.streaming", fix, ("data", "streaming"))

    @hookimpl
    def filter_rows(self, columns: Any) -> RowFilter:
        """Remembers what rows hold.

        Raises:
            DataError: if there is no such column.
        """
        from sftkit_plugins.dedup.duplicates import Duplicates, Normal
        from sftkit_plugins.dedup.near import NearDuplicates

        chosen_columns(columns, self.columns, "plugin dedup, option columns")
        near = None if self.near is None else NearDuplicates(self.near, self.ngram, self.permutations)
        return Duplicates(self.columns, Normal(self.ignore_case, self.ignore_space), near)
