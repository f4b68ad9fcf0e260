"""What the configuration of a model says about its size."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from sftkit.answers import Warnings, keep, parts_of_run, recall
from sftkit.models.adapters import base_of

if TYPE_CHECKING:
    from sftkit.run.stages import PreparedRun

SHAPE = "the shape of a model"


@dataclass(frozen=True)
class ModelShape:
    """What the configuration of a model says about its size, and where its answers end.

    Attributes:
        parameters: the number of its weights; None if no model can be built from it.
        positions: the tokens of the longest text that it is made for; None if its configuration does not say.
        eos_token_id: the tokens at which generation stops; None if its configuration does not say.
        rotary: whether its positions are rotary, so that they can be scaled.
    """

    parameters: int | None
    positions: int | None
    eos_token_id: int | list[int] | None
    rotary: bool


def model_shape(run: PreparedRun) -> ModelShape | None:
    """The shape of the model that a run loads; None without a local configuration of it.

    Args:
        run: the run. If its model is an adapter, the base model counts.
    """
    if run.model is not None:
        return None
    base, _ = base_of(run.config.model.name)
    parts = parts_of_run(run.config, run.plugins, base)
    if parts is not None:
        parts["images"] = run.vocabulary.processor is not None
        if (kept := recall(SHAPE, parts)) is not None:
            return ModelShape(**kept)
    with Warnings("transformers") as warned:
        found = _shape(run, base)
    if parts is not None and found is not None and not warned.any:
        keep(SHAPE, parts, asdict(found))
    return found


def _shape(run: PreparedRun, base: str) -> ModelShape | None:
    import torch

    from sftkit.memory.unloaded import auto_class, model_config
    from sftkit.models.inspect import position_limit

    options = run.plugins.model_options(run.config)
    config = model_config(base, run.config.model.trust_remote_code, options)
    if config is None:
        return None
    parameters = None
    with contextlib.suppress(Exception), torch.device("meta"):  # what a model's own code raises is found when it loads
        parameters = sum(each.numel() for each in auto_class(run).from_config(config).parameters())
    ends = getattr(config, "eos_token_id", None)
    rotary = bool(getattr(config.get_text_config(), "rope_parameters", None))
    return ModelShape(parameters, position_limit(config), ends, rotary)
