"""The interface of packers."""

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
    """Rearranges examples into rows of at most ``data.max_length`` tokens.

    A packer holds plain data, so that it can be pickled.
    """

    @property
    def cuts_documents(self) -> bool:
        """Whether the packer accepts documents of any length and cuts them itself.

        If False, examples are cut to ``data.max_length`` first. If ``data.truncation`` is ``drop`` or ``error``, no
        longer example reaches the packer in any case.
        """
        return False

    @property
    def keeps_tokens(self) -> bool:
        """Whether the rows have each token of the examples once, which is checked.

        False for a packer that adds, drops or repeats tokens. It counts them.
        """
        return True

    @abstractmethod
    def __call__(self, examples: Examples) -> Iterator[pa.Table]:
        """The packed rows, one table at a time.

        Args:
            examples: all examples of a split, or of a window of a stream. They may be on disk: read them in order if
                possible, and call ``examples.release()`` now and then.

        Yields:
            Tables made by `examples_table` with the columns ``input_ids``, ``labels`` and ``position_ids``, which
            restart at 0 for each document, ``loss_weights`` if the examples have ``weights_S``, and ``sources`` if they
            have ``sources_S``. The first label of each document is -100.
        """
