"""`TrainingArguments` from the section `train`, with sftkit's defaults."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sftkit.config.train_fields import DEFAULTS
from sftkit.errors import ConfigError, Problem

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from sftkit.config import RunConfig

logger = logging.getLogger("sftkit")


def training_arguments(config: RunConfig, has_eval: bool) -> TrainingArguments:
    """Build the arguments.

    Raises:
        ConfigError: for what transformers refuses, in its own words.
    """
    import torch
    from transformers import TrainingArguments

    values = {**DEFAULTS, "dataloader_pin_memory": torch.accelerator.is_available(), **config.train}
    values["do_eval"] = has_eval  # without it, TrainingArguments would turn an evaluation strategy on without data
    try:
        arguments = TrainingArguments(**values)
    except (ValueError, TypeError, ImportError) as error:
        first = " ".join(str(error).split())
        raise ConfigError(Problem(first, "train", "correct the arguments")) from error
    return use_one_device(arguments)


def use_one_device(arguments: TrainingArguments) -> TrainingArguments:
    """The arguments, of a process that uses one GPU; that others are left idle is told. Changes them."""
    if arguments.n_gpu > 1:
        logger.warning(
            "one process uses one GPU, and %d are visible: `torchrun --no-python --nproc_per_node %d sftkit` uses all",
            *(arguments.n_gpu, arguments.n_gpu),
        )
        arguments._n_gpu = 1  # or the Trainer would wrap the model in DataParallel
    return arguments
