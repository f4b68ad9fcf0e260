"""What a packer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftkit.data.columns import Examples

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
            which restart from 0 at each document. The first label of each document is -100.
        """
