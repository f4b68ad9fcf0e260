"""The optimizer of a run, made for its model without weights: its groups, and the size of its state."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sftkit.errors import SftkitError
from sftkit.memory.optimizer import state_bytes
from sftkit.memory.unloaded import UnknownMemoryError, unloaded_model
from sftkit.models.unloaded import without_data
from sftkit.training.groups import OptimizerMaker, WeightGroup, weight_groups

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet
    from sftkit.run.stages import PreparedRun

logger = logging.getLogger("sftkit")


def optimizer_groups(prepared: PreparedRun) -> tuple[str, list[WeightGroup]]:
    """The class of the optimizer that a plugin makes for a run, and its groups; "" and none if no plugin makes it.

    Raises:
        UnknownMemoryError: if the weights are not known before the model is loaded.
        SftkitError: if the plugin finds that the run is wrong.
    """
    maker = OptimizerMaker(prepared.plugins, prepared.config)
    if not maker.plugin:
        return "", []
    try:
        model, _ = unloaded_model(prepared)
    except SftkitError:
        raise
    except Exception as error:  # a plugin may raise anything on a model without weights
        first = next(iter(str(error).splitlines()), "")
        raise UnknownMemoryError(f"the model cannot be built without data ({type(error).__name__}: {first})") from error
    made = maker(model)
    return ("", []) if made is None else (type(made).__name__, weight_groups(made))


def optimizer_bytes(model: Any, config: RunConfig, plugins: PluginSet | None = None) -> int:
    """Bytes of the state of a run's optimizer; that of a plugin makes a step without data to know.

    Args:
        model: the model to train; it is not changed.
        config: the run as resolved.
        plugins: the selected plugins, of which one may make the optimizer.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    name = config.train.get("optim")
    if plugins is None or not (maker := OptimizerMaker(plugins, config)).plugin:
        return state_bytes(name, trained)
    with without_data(model):
        made = maker(model)
        if made is None or _is_configured(made, config, model):
            return state_bytes(name, trained)
    try:
        return state_after_step(made)
    except Exception as error:  # an optimizer may do anything that the meta device has no kernel for
        what = "memory: the size of the state of the optimizer of plugin %s is not known (%s); it is counted as AdamW"
        logger.warning(what, maker.plugin, " ".join(str(error).split())[:200])
        return state_bytes(None, trained)


def _is_configured(made: Optimizer, config: RunConfig, model: Any) -> bool:
    from sftkit.training.configured import OWN_GROUPS, optimizer_class

    own = str(config.train.get("optim") or "").startswith(OWN_GROUPS)
    return not own and type(made) is optimizer_class(config, model)[0]


def state_after_step(optimizer: Any) -> int:
    import torch

    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if callable(getattr(optimizer, "train", None)):
        optimizer.train()
    for weight in weights:
        weight.grad = torch.empty_like(weight)
    optimizer.step()
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in values if torch.is_tensor(value))
