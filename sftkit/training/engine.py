"""How the processes of a run share its model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from sftkit.ranks import rank, world_size


class Engine:
    """How the processes of a run share its model: this one gives each process a whole copy, and averages gradients.

    A plugin returns a subclass from ``make_engine``. An engine is made before weights are loaded, and lives as long as
    the run. Every method is called by all processes at the same point of the run, unless it says otherwise.

    Attributes:
        name: what it is called in messages and in the manifest.
        sharded: whether a process holds only a part of the weights, so that all must take part in a save.
        reshards: whether another number of processes can resume from a checkpoint.
        sharing: how many processes work on the same rows, as in tensor parallelism. The number of processes divided by
            it is the number of replicas, by which losses and counts are scaled.
        receives: whether this process builds the model without weights, on the meta device, and receives them in
            `place`.
        restores: whether `save_state` writes the weights too, and `load_state` reads them; else a checkpoint holds the
            model as ``save_pretrained`` writes it. That of an adapter is always there.
        wraps: whether the Trainer wraps the model, as in DDP, or the engine has done all there is to do in `place`.
    """

    name: ClassVar[str] = "ddp"
    sharded: bool = False
    reshards: bool = True
    sharing: int = 1
    receives: bool = False
    restores: bool = False
    wraps: bool = True

    @property
    def replicas(self) -> int:
        """The number of groups of processes that work on different rows."""
        return max(world_size() // self.sharing, 1)

    @property
    def replica(self) -> int:
        """The number of this process's group, from 0: processes of one group get the same rows and random numbers."""
        return rank() // self.sharing

    def arguments(self) -> Mapping[str, Any]:
        """Fields of `transformers.TrainingArguments`, which are made before weights are loaded."""
        return {}

    def loading(self) -> AbstractContextManager[Any]:
        """Context in which the model is loaded, patched and adapted."""
        return nullcontext()

    def place(self, model: Any, arguments: Any) -> Any:
        """The adapted model as this process trains it: sharded, on its device.

        Args:
            model: from `loading`.
            arguments: the run's `transformers.TrainingArguments`.

        Raises:
            RunError: if it was not sharded although it should be.
        """
        return model

    def gather_tables(self, model: Any) -> None:
        """Make the weights of the embeddings whole in every process, before they grow. Changes the model."""

    def callable(self, model: Any) -> AbstractContextManager[Any]:
        """Context in which the model can be called although the Trainer has not wrapped it yet."""
        return nullcontext()

    def weights(self, trainer: Any) -> dict[str, Any] | None:
        """The whole weights to save, in the main process, under the names of the model; elsewhere an empty dictionary.

        None if the model's own ``save_pretrained`` finds them.
        """
        return None

    def save_state(self, trainer: Any, directory: str) -> bool:
        """Write the state of the optimizer into a checkpoint; if the engine `restores`, the weights too.

        The trainer adds the schedule.

        Returns:
            Whether it did; else the Trainer writes them.
        """
        return False

    def load_state(self, trainer: Any, directory: str) -> bool:
        """Read what `save_state` has written.

        Returns:
            Whether it did; else the Trainer reads what it has written.
        """
        return False

    def close(self) -> None:
        """Restore what the engine has changed in the process, such as variables; also after an error."""
