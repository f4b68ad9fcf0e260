# ruff: noqa: N803, N806 (suffixes are shapes)
"""The rows of a packer, which hold what its examples hold.

Legend: S tokens of a table, R its rows, D its documents.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftkit.data.columns import IGNORE_INDEX, LOSS_WEIGHTS, SOURCES, Examples, flatten_column
from sftkit.data.packs import Packer
from sftkit.data.stats import hash_documents
from sftkit.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

logger = logging.getLogger("sftkit")

AT_ONCE = 1 << 12  # documents that are hashed at once, so that memory does not grow with the data
NEEDED = ("input_ids", "labels", "position_ids")


def check_packable(examples: Examples) -> None:
    """Check that nothing is attached to the examples.

    Raises:
        ConfigError: if something is: a row of several documents has no place for it.
    """
    if examples.attached_N is not None:
        what = "documents with attachments, such as images, cannot be packed"
        raise ConfigError(Problem(what, "the packing plugin", "deselect the plugin"))


def packed(packer: Packer, examples: Examples, max_length: int, made_by: str) -> Iterator[pa.Table]:
    """The packer's rows.

    Args:
        packer: the packer.
        examples: what it packs.
        max_length: the most tokens of a row.
        made_by: the plugin and the hook that made the packer, for messages.

    Raises:
        ConfigError: if the packer drops the weights of the examples, or something is attached to the examples.
        DataError: if a row is too long, its positions do not restart at each document, or the packer loses, repeats
            or changes documents.
    """
    check_packable(examples)
    warned = False
    found = _Content(packer.cuts_documents)
    for table in packer(examples):
        if missing := [name for name in NEEDED if name not in table.column_names]:
            what = f"{type(packer).__name__} makes rows without {', '.join(missing)}"
            raise DataError(Problem(what, made_by, f"yield tables with the columns {', '.join(NEEDED)}"))
        if examples.weights_S is not None and LOSS_WEIGHTS not in table.column_names:
            what = f"the data has token weights, and {type(packer).__name__} drops them (column loss_weights)"
            fix = "use a packer that keeps them, or remove the weights from the data"
            raise ConfigError(Problem(what, made_by, fix))
        if examples.sources_S is not None and SOURCES not in table.column_names and not warned:
            logger.warning("no loss by data source: %s drops the column %s", type(packer).__name__, SOURCES)
            warned = True
        if problem := found.add_table(table, max_length):
            raise DataError(Problem(f"{type(packer).__name__} {problem.what}", made_by, problem.fix))
        yield table
    given = _Content(packer.cuts_documents)
    given.add_examples(examples)
    if problem := found.compared_with(given, packer.keeps_tokens):
        raise DataError(Problem(f"{type(packer).__name__} {problem.what}", made_by, problem.fix))


@dataclass
class _Content:
    """Sums over documents that do not depend on their order.

    Attributes:
        cut: whether documents may be cut, so that only tokens can be compared.
        documents: the number of documents with tokens.
        tokens: the number of tokens.
        trained: the number of trained tokens.
        hashes: the sum of the hashes of the documents, each with its labels; of single tokens, if documents are cut.
    """

    cut: bool
    documents: int = 0
    tokens: int = 0
    trained: int = 0
    hashes: int = 0

    def add_examples(self, examples: Examples) -> None:
        """Add examples, some at a time."""
        for low in range(0, len(examples), AT_ONCE):
            offsets_N1 = examples.offsets_N1[low : low + AT_ONCE + 1]
            some = slice(int(offsets_N1[0]), int(offsets_N1[-1]))
            self._add(examples.ids_S[some], examples.labels_S[some], offsets_N1 - offsets_N1[0])
            examples.release()

    def add_table(self, table: pa.Table, max_length: int) -> Problem | None:
        """Add the rows of a table; returns what is wrong with one of them."""
        import numpy as np

        ids_S, offsets_R1 = flatten_column(table, "input_ids")
        labels_S, positions_S = (flatten_column(table, name)[0] for name in ("labels", "position_ids"))
        longest = int(np.diff(offsets_R1).max(initial=0))
        if longest > max_length:
            return Problem(
                f"makes a row of {longest:,} tokens, and data.max_length is {max_length:,}", fix="keep rows shorter"
            )
        starts_S = np.zeros(len(ids_S), bool)
        starts_S[offsets_R1[:-1][np.diff(offsets_R1) > 0]] = True
        goes_on_S = np.diff(positions_S, prepend=0) == 1
        if (wrong_S := ~((positions_S == 0) | (goes_on_S & ~starts_S))).any():
            what = f"makes rows with {int(wrong_S.sum()):,} positions that neither restart at 0 nor count on"
            return Problem(what, fix="count position_ids from 0 in each document")
        firsts_D = np.flatnonzero(positions_S == 0)
        if trained := int((labels_S[firsts_D] != IGNORE_INDEX).sum()):
            what = f"makes rows in which {trained:,} documents train their first token, which has no context"
            return Problem(what, fix=f"set the first label of each document to {IGNORE_INDEX}")
        self._add(ids_S, labels_S, np.append(firsts_D, len(ids_S)))
        return None

    def _add(self, ids_S: np.ndarray, labels_S: np.ndarray, offsets_D1: np.ndarray) -> None:
        import numpy as np

        self.documents += int((np.diff(offsets_D1) > 0).sum())
        self.tokens += len(ids_S)
        self.trained += int((labels_S != IGNORE_INDEX).sum())
        if self.cut:
            hashes = hash_documents(ids_S, np.arange(len(ids_S) + 1))
        else:
            hashes = hash_documents(ids_S, offsets_D1) * (hash_documents(labels_S, offsets_D1) | np.uint64(1))
        self.hashes = (self.hashes + int(hashes.sum(dtype=np.uint64))) % (1 << 64)

    def compared_with(self, given: _Content, keeps_tokens: bool) -> Problem | None:
        """What is wrong with these rows of a packer, given its examples."""
        fix = "yield each document once, as it is; a packer that drops or repeats tokens has keeps_tokens = False"
        if not keeps_tokens:
            return None
        if not self.cut and self.documents != given.documents:
            verb = "loses" if self.documents < given.documents else "repeats"
            number = abs(self.documents - given.documents)
            return Problem(f"{verb} {number:,} of {given.documents:,} documents", fix=fix)
        if self.tokens != given.tokens:
            return Problem(f"makes {self.tokens:,} tokens of {given.tokens:,}", fix=fix)
        if self.hashes != given.hashes:
            return Problem("makes rows of other documents than it was given", fix=fix)
        if self.trained > given.trained:
            return Problem(f"trains {self.trained:,} tokens, and {given.trained:,} were to be trained", fix=fix)
        return None
