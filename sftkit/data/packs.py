"""The interface of packers."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftkit.data.columns import LOSS_WEIGHTS, SOURCES, Examples
from sftkit.errors import ConfigError, Problem

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger("sftkit")


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


def check_packable(examples: Examples) -> None:
    """Check that nothing is attached to the examples.

    Raises:
        ConfigError: if something is: a row of several documents has no place for it.
    """
    if examples.attached_N is not None:
        what = "documents with attachments, such as images, cannot be packed"
        raise ConfigError(Problem(what, "the packing plugin", "deselect the plugin"))


def packed(packer: Packer, examples: Examples) -> Iterator[pa.Table]:
    """The packer's rows.

    Raises:
        ConfigError: if the packer drops the weights of the examples, or something is attached to the examples.
    """
    check_packable(examples)
    warned = False
    for table in packer(examples):
        if examples.weights_S is not None and LOSS_WEIGHTS not in table.column_names:
            what = f"the data has token weights, and {type(packer).__name__} drops them (column loss_weights)"
            fix = "use a packer that keeps them, or remove the weights from the data"
            raise ConfigError(Problem(what, "the packing plugin", fix))
        if examples.sources_S is not None and SOURCES not in table.column_names and not warned:
            logger.warning("no loss by data source: %s drops the column %s", type(packer).__name__, SOURCES)
            warned = True
        yield table
