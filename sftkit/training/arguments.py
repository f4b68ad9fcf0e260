"""`TrainingArguments` from the section `train`, with sftkit's defaults."""

from __future__ import annotations

import copy
import logging
import math
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sftkit.config.evaluation import fields_of
from sftkit.config.train_checks import METRICS, best_metric
from sftkit.config.train_fields import DEFAULTS, train_value
from sftkit.errors import ConfigError, Problem
from sftkit.ranks import world_size
from sftkit.training.engine import Engine

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from sftkit.config import RunConfig

logger = logging.getLogger("sftkit")

LATER = 60  # seconds after run.timeout in which the processes end in order, before a collective gives up


def argument_values(
    config: RunConfig, has_eval: bool, metrics: bool = False, engine: Engine | None = None
) -> dict[str, Any]:
    """The arguments of `TrainingArguments` for a run.

    Args:
        config: the run as resolved.
        has_eval: whether there is evaluation data.
        metrics: whether a function computes metrics, which needs predictions.
        engine: how the processes share the model; DDP by default.
    """
    import torch

    values = {**DEFAULTS, "dataloader_pin_memory": torch.accelerator.is_available()}
    if metrics:
        values["prediction_loss_only"] = False
    strange = bool(best_metric(config)) and not best_metric(config).endswith(METRICS)
    if has_eval and strange and train_value(config, "eval_strategy") != "no":
        values["eval_on_start"] = True  # whether anything computes the metric is known before the first step
    if has_eval and config.evaluate.metrics:  # also shows that each can be computed, and its value before the training
        values["eval_on_start"] = True
    values |= {
        name: copy.deepcopy(value) for name, value in (config.train | fields_of(config)).items()
    }  # some are changed when they are read
    values |= copy.deepcopy(dict(engine.arguments())) if engine is not None else {}
    if world_size() == 1:
        values.pop("ddp_backend", None)  # a single process would look for its group
    values["ddp_timeout"] = math.ceil(config.run.timeout) + LATER
    values["do_eval"] = has_eval  # otherwise an evaluation strategy turns it on, even without data
    return values


def training_arguments(
    config: RunConfig, has_eval: bool, metrics: bool = False, engine: Engine | None = None
) -> TrainingArguments:
    """Build the arguments; as for `argument_values`.

    Raises:
        ConfigError: with the message of transformers, if it rejects them.
    """
    from transformers import TrainingArguments

    values = argument_values(config, has_eval, metrics, engine)
    _join_processes(values)
    try:
        arguments = TrainingArguments(**values)
    except (ValueError, TypeError, ImportError) as error:
        message = " ".join(str(error).split())
        given = engine.arguments() if engine is not None else {}
        also = f", also those of the engine {engine.name}: {', '.join(given)}" if engine is not None and given else ""
        raise ConfigError(Problem(message, "train", f"correct the arguments{also}")) from error
    return use_one_device(arguments)


def _join_processes(values: dict[str, Any]) -> None:
    """Form the group of processes where transformers would not, or not rightly.

    On the CPU it ignores the timeout. After a restart, torchrun may keep its store, in which the processes would find
    the addresses of those that have ended.
    """
    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    restart, use_cpu = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), values.get("use_cpu")
    if world_size() == 1 or dist.is_initialized() or not (use_cpu or restart != "0"):
        return
    timeout = timedelta(seconds=values["ddp_timeout"])
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    known = {"store": PrefixStore(f"sftkit/{restart}", store), "rank": rank, "world_size": size}
    dist.init_process_group(values.get("ddp_backend") or ("gloo" if use_cpu else None), timeout=timeout, **known)


def use_one_device(arguments: TrainingArguments) -> TrainingArguments:
    """Limit a process to one GPU, and log a warning if more are visible. Changes the arguments."""
    if arguments.n_gpu > 1:
        logger.warning(
            "this process uses one of %d visible GPUs; to use all: sftkit launch --nproc %d run ...",
            *(arguments.n_gpu, arguments.n_gpu),
        )
        arguments._n_gpu = 1  # otherwise the Trainer wraps the model in DataParallel
    return arguments
