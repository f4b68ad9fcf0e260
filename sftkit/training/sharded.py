"""What engines have in common in which no process holds all weights."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.models.inspect import has_adapter
from sftkit.ranks import is_main_process
from sftkit.training.engine import Engine

if TYPE_CHECKING:
    from torch import Tensor


class ShardedEngine(Engine):
    """An engine whose `place` makes every parameter a DTensor, of which a process holds a shard.

    The first process loads the weights; the others build the model without them, and receive their shards. Checkpoints
    have the shards, and any number of processes can resume from them; the model is saved as a whole.
    """

    sharded = True
    restores = True
    wraps = False

    def __init__(self) -> None:
        self.receives = not is_main_process()

    def loading(self) -> contextlib.AbstractContextManager[Any]:
        """The first process loads the weights; in the others, everything is on the meta device."""
        import torch

        return torch.device("meta") if self.receives else contextlib.nullcontext()

    @contextlib.contextmanager
    def filling(self, model: Any, device: Any, copies: Any = None) -> Iterator[None]:
        """A context for `place`, in which the parameters become DTensors, while they are on the meta device.

        After it they have the weights that the first process has loaded.

        Args:
            model: the adapted model.
            device: where the shards are kept.
            copies: the group of the processes that hold the same shards as this one; None if none does.

        Raises:
            RunError: in every process, if the model cannot be built without its weights.
        """
        from sftkit.training.whole import agree, receive, take_weights

        agree(model, self.receives, self.name)
        weights = take_weights(model)
        yield
        receive(model, {} if self.receives else weights, device, copies)

    @staticmethod
    def postpones_reduction(model: Any) -> None:
        """Reduce the gradients of a model once a step, and not after each of its batches. Changes the model.

        Args:
            model: from `fully_shard`.
        """
        model.no_sync = functools.partial(_without_reduction, model)  # accelerate asks for it by this name

    def weights(self, trainer: Any) -> dict[str, Tensor]:
        """The whole weights in the main process; of a model with an adapter, those that are saved with it."""
        from sftkit.training.whole import gather

        model = trainer.model
        if not has_adapter(model):
            return gather(model)
        kept = [*model.get_input_embeddings().parameters()]
        if (head := model.get_output_embeddings()) is not None:
            kept += head.parameters()
        ids = {id(parameter) for parameter in kept}
        named = model.named_parameters(remove_duplicate=False)
        return gather(model, {name for name, weight in named if weight.requires_grad or id(weight) in ids})

    def save_state(self, trainer: Any, directory: str) -> bool:
        """Each process writes its shards; see `Engine.save_state`."""
        from sftkit.training import shards

        Path(directory).mkdir(parents=True, exist_ok=True)
        shards.save(trainer.model, _inner(trainer.optimizer), Path(directory), frozen=not has_adapter(trainer.model))
        return True

    def load_state(self, trainer: Any, directory: str) -> bool:
        """Each process reads its shards, whatever number of processes has written them; see `Engine.load_state`."""
        from sftkit.training import shards

        model, path = trainer.model, Path(directory)
        shards.load_weights(model, path, frozen=not has_adapter(model))
        shards.load_optimizer(model, _inner(trainer.optimizer), path)
        return True


@contextlib.contextmanager
def _without_reduction(model: Any) -> Iterator[None]:
    """Inside, each process adds up its gradients; the next backward outside reduces their sums."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def _inner(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)
