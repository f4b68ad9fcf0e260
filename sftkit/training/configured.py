"""The optimizer that the section ``train`` names, for groups of weights that a plugin makes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sftkit.errors import ConfigError, Problem

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from sftkit.config import RunConfig

#: Optimizers that make their groups of weights themselves, or have none.
OWN_GROUPS = ("galore", "apollo", "lomo", "adalomo")


def decayed_names(model: Any) -> set[str]:
    """The names of the weights that are decayed: all but biases and the weights of norms, as in the Trainer."""
    from transformers import Trainer

    return set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]


def optimizer_class(config: RunConfig, model: Any) -> tuple[type[Optimizer], dict[str, Any]]:
    """The class that ``train.optim`` names, and its arguments as the section ``train`` sets them.

    Args:
        config: the run as resolved.
        model: the model to train.

    Raises:
        ConfigError: if the optimizer makes its groups of weights itself.
    """
    from transformers import Trainer

    from sftkit.config.train_fields import train_value
    from sftkit.training.rehearsal import rehearsed_arguments

    name = str(train_value(config, "optim"))
    if name.startswith(OWN_GROUPS):
        what = f"{name} makes its groups of weights itself"
        raise ConfigError(Problem(what, "train.optim", "choose another one, such as adamw_torch", ("train", "optim")))
    kind, options = Trainer.get_optimizer_cls_and_kwargs(rehearsed_arguments(config, has_eval=False), model)
    return kind, options


def configured_optimizer(model: Any, config: RunConfig, groups: Iterable[Mapping[str, Any]]) -> Optimizer:
    """The optimizer that ``train.optim`` names, with these groups of weights, as the Trainer makes it.

    Args:
        model: the model to train; on the meta device, no kernel is chosen that needs another one.
        config: the run as resolved: its learning rate and betas count for each group that does not set its own.
        groups: as `torch.optim.Optimizer` takes them: ``params``, ``weight_decay``, ``lr``, and a ``name`` for the log.

    Raises:
        ConfigError: as of `optimizer_class`.
    """
    kind, options = optimizer_class(config, model)
    if any(weight.is_meta for weight in model.parameters()):
        options.pop("fused", None)
    made = kind([dict(group) for group in groups], **copy.copy(options))
    if "bitsandbytes" in str(kind) and options.get("optim_bits") == 8:
        _keep_embeddings_in_full_precision(model)
    return made


def _keep_embeddings_in_full_precision(model: Any) -> None:
    """The state of embeddings is in 32 bits, as the Trainer registers it: in 8 bits it is not stable."""
    import torch
    from bitsandbytes.optim import GlobalOptimManager

    manager = GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})
