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
        ConfigError: with the message of transformers, if it rejects them.
    """
    import torch
    from transformers import TrainingArguments

    values = {**DEFAULTS, "dataloader_pin_memory": torch.accelerator.is_available(), **config.train}
    values["do_eval"] = has_eval  # otherwise an evaluation strategy turns it on, even without data
    try:
        arguments = TrainingArguments(**values)
    except (ValueError, TypeError, ImportError) as error:
        message = " ".join(str(error).split())
        raise ConfigError(Problem(message, "train", "correct the arguments")) from error
    return use_one_device(arguments)


def use_one_device(arguments: TrainingArguments) -> TrainingArguments:
    """Limit a process to one GPU, and log a warning if more are visible. Changes the arguments."""
    if arguments.n_gpu > 1:
        logger.warning(
            "this process uses one of %d visible GPUs; to use all: torchrun --no-python --nproc_per_node %d sftkit",
            *(arguments.n_gpu, arguments.n_gpu),
        )
        arguments._n_gpu = 1  # otherwise the Trainer wraps the model in DataParallel
    return arguments
