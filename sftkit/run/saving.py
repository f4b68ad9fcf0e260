"""How a run saves: the disk space that it needs, and whether it saves in the background."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.checkpoints.choice import checkpoints, is_saved
from sftkit.checkpoints.space import free_bytes
from sftkit.errors import ConfigError, Problem, RunError
from sftkit.models.adapters import changed_configuration
from sftkit.models.inspect import has_adapter
from sftkit.units import size_text

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet

LARGE = 256_000_000  # bytes of a checkpoint from which a thread pays
COPIES = 1.5  # free memory that a copy of a checkpoint needs, in checkpoints
SPARE = 1.02  # file headers, tokenizer, random states


def prepare_saving(trainer: Any, config: RunConfig, plugins: PluginSet) -> None:
    """Check the disk space for checkpoints and model, and choose what is saved beside an adapter, and in which thread.

    Raises:
        RunError: if the disk has too little space.
        ConfigError: if ``run.save_in_background`` is true, and it is impossible.
    """
    from sftkit.memory.made import optimizer_bytes

    model, args = trainer.model, trainer.args
    trainer.base_options = changed_configuration(model, plugins.model_options(config)) if has_adapter(model) else {}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    saved = trained if has_adapter(model) else [*model.parameters(), *model.buffers()]
    weights = sum(weight.nbytes for weight in saved)
    state = 0 if args.save_only_model else optimizer_bytes(model, config, plugins)
    checkpoint = int((weights + state) * SPARE)
    trainer.saver.needed = checkpoint if args.save_strategy != "no" else 0
    _check_space(Path(args.output_dir), args, checkpoint, int(weights * SPARE))
    obstacle = _obstacle(trainer)
    if config.run.save_in_background is True and obstacle:
        what = f"checkpoints cannot be saved in the background: {obstacle}"
        raise ConfigError(Problem(what, "run.save_in_background", "set it to auto or false"))
    chosen = config.run.save_in_background
    trainer.saver.background = _pays(checkpoint) and not obstacle if chosen == "auto" else chosen


def _check_space(directory: Path, args: Any, checkpoint: int, model: int) -> None:
    there = sum(map(is_saved, checkpoints(directory).values())) if directory.is_dir() else 0
    saves, limit = _saves(args), args.save_total_limit
    kept = saves if limit is None else min(saves, max(limit - there, 0))
    # While the last checkpoint is written, those that it replaces are still there.
    needed = max(checkpoint * min(saves, kept + 1), checkpoint * kept + model)
    if needed <= (free := free_bytes(directory)):
        return
    what = f"the run needs {size_text(needed)} of disk space, and {size_text(free)} are free"
    if kept:
        what += f": {kept} {'checkpoints' if kept > 1 else 'checkpoint'} of {size_text(checkpoint)}, and the model"
    fix = "free some space, choose another --output, or lower train.save_total_limit"
    raise RunError(Problem(what, str(directory), fix))


def _saves(args: Any) -> int:
    """The least number of checkpoints that the run saves."""
    if args.save_strategy == "no":
        return 0
    if args.save_strategy == "steps" and args.max_steps > 0 and args.save_steps >= 1:
        return int(args.max_steps // args.save_steps)
    if args.save_strategy == "epoch" and args.max_steps <= 0:
        return math.ceil(args.num_train_epochs)
    return 1


def _pays(checkpoint: int) -> bool:
    """Whether a checkpoint is large, and a copy of it fits into memory."""
    import torch

    from sftkit.memory.device import memory_of

    if checkpoint < LARGE:
        return False
    memory = memory_of(torch.device("cpu"))
    return memory.most is not None and memory.most - memory.held > COPIES * checkpoint


def _obstacle(trainer: Any) -> str:
    """What prevents saving in the background; empty if nothing does."""
    from transformers import TrainerCallback

    from sftkit.run.marks import Marks

    if trainer.sharded:
        return "all processes write parts of a sharded model"
    if trainer.args.push_to_hub and trainer.args.hub_strategy != "end":
        return "train.push_to_hub uploads each checkpoint when it is saved"
    own = (type(trainer.stopping), Marks)
    others = [each for each in trainer.callback_handler.callbacks if not isinstance(each, own)]
    readers = [each for each in others if type(each).on_save is not TrainerCallback.on_save]
    return f"the callback {type(readers[0]).__name__} may read a checkpoint in on_save" if readers else ""
