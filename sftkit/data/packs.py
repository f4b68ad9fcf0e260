"""What a packer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftkit.data.columns import LOSS_WEIGHTS, Examples
from sftkit.errors import ConfigError, Problem

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Packer(ABC):
    """Rearranges examples into rows of at most ``data.max_length`` tokens; plain data, so that it can be pickled."""

    @property
    def cuts_documents(self) -> bool:
        """Whether it takes documents of any length and cuts them itself.

        Where False, examples come fitted to ``data.max_length``. With ``data.truncation`` drop or error, they do in
        any case.
        """
        return False

    @abstractmethod
    def __call__(self, examples: Examples) -> Iterator[pa.Table]:
        """The packed rows, a table at a time.

        Args:
            examples: all the examples of a split, or of a window of a stream. They may lie on disk: read them in
                order where you can, and call ``examples.release()`` now and then.

        Yields:
            Tables made by `sftkit.data.columns.table` with the columns ``input_ids``, ``labels`` and ``position_ids``,
            which restart from 0 at each document, and ``loss_weights`` where the examples have ``weights_S``. The
            first label of each document is -100.
        """


def check_packable(examples: Examples) -> None:
    """That examples are nothing but tokens.

    Raises:
        ConfigError: if something is attached to them, which has no place in rows of several documents.
    """
    if examples.attached_N is not None:
        what = "a packed row holds several documents, and something is attached to each, as pictures"
        raise ConfigError(Problem(what, "the packing plugin", "drop it"))


def packed(packer: Packer, examples: Examples) -> Iterator[pa.Table]:
    """The packer's rows.

    Raises:
        ConfigError: if it leaves out the weights that the examples have, or something is attached to them.
    """
    check_packable(examples)
    for table in packer(examples):
        if examples.weights_S is not None and LOSS_WEIGHTS not in table.column_names:
            what = f"{type(packer).__name__} leaves out how much each token counts (loss_weights), which the data says"
            fix = "use another packer (-p packing), or take the weights out of the data"
            raise ConfigError(Problem(what, "the packing plugin", fix))
        yield table
