"""The loss of a run with its teacher: loaded, without weights, or stored."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sftkit.api import (
    ConfigError,
    FrozenModel,
    Problem,
    TokenStore,
    UnknownMemoryError,
    base_of,
    device_of,
    load_tokenizer,
    load_trained,
    model_config,
    tokens_by_id,
    train_value,
)
from sftkit_plugins.distill.loss import Mixture, OnlineLoss, StoredLoss

if TYPE_CHECKING:
    from sftkit.api import RunConfig
    from sftkit_plugins.distill import Distill

TEACHER = "plugin distill, option teacher"


def online_loss(plugin: Distill, model: Any, config: RunConfig) -> OnlineLoss:
    """The loss with a teacher that runs in training.

    Args:
        plugin: the plugin.
        model: the student; for one on the meta device, the teacher is there too.
        config: the run as resolved.

    Raises:
        ConfigError: if the teacher cannot be loaded.
        UnknownMemoryError: if a teacher without weights is needed, and cannot be made.
    """
    if next(model.parameters()).device.type == "meta":
        teacher, tokenizer = _unloaded(plugin, config), _tokenizer(plugin, config)
    else:
        teacher, tokenizer = _loaded(plugin, config)
    tokens = len(tokens_by_id(tokenizer))
    try:
        frozen = FrozenModel(teacher, tokens)
    except ValueError as error:
        raise ConfigError(Problem(str(error), TEACHER, "use a teacher with logits for every token")) from error
    size = int(train_value(config, "per_device_train_batch_size"))
    return OnlineLoss(_mixture(plugin, tokens), frozen, size, config.data.max_length)


def stored_loss(plugin: Distill) -> StoredLoss:
    """The loss with stored values."""
    store = TokenStore.open(plugin.rows, "plugin distill, option rows")
    return StoredLoss(_mixture(plugin, store.about["tokens"]), store)


def _mixture(plugin: Distill, tokens: int) -> Mixture:
    return Mixture(plugin.kl, plugin.beta, plugin.temperature, plugin.alpha, tokens)


def _loaded(plugin: Distill, config: RunConfig) -> tuple[Any, Any]:
    """The teacher on its device, and its tokenizer."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    from sftkit_plugins.distill import partitioned

    if is_deepspeed_zero3_enabled():
        raise ConfigError(partitioned())
    loaded = load_trained(
        plugin.teacher,
        dtype=plugin.dtype or None,
        plugins=plugin.loaders,
        device=plugin.device or str(device_of(config)),
        trust_remote_code=config.model.trust_remote_code,
    )
    weights = list(loaded.model.parameters())
    what = "distill: teacher %s, %s parameters in %s on %s"
    numbers = f"{sum(weight.numel() for weight in weights):,}"
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    logging.getLogger("sftkit").info(what, plugin.teacher, numbers, dtype, weights[0].device)
    return loaded.model, loaded.tokenizer


def _unloaded(plugin: Distill, config: RunConfig) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    name, _ = base_of(plugin.teacher)
    architecture = model_config(name, config.model.trust_remote_code)
    if architecture is None:
        raise UnknownMemoryError(f"there is no local configuration of the teacher {name!r}")
    if plugin.loaders or getattr(architecture, "quantization_config", None) is not None:
        raise UnknownMemoryError("the size of a quantized teacher is not known")
    wanted = plugin.dtype if plugin.dtype not in ("", "auto") else architecture.dtype or "float32"
    dtype = getattr(torch, wanted) if isinstance(wanted, str) else wanted
    trust = config.model.trust_remote_code
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(architecture, dtype=dtype, trust_remote_code=trust)


def _tokenizer(plugin: Distill, config: RunConfig) -> Any:
    return load_tokenizer(teacher_config(plugin, config))


def teacher_config(plugin: Distill, config: RunConfig) -> RunConfig:
    """The configuration of the run with the teacher in place of the model."""
    section = config.model.model_copy(update={"name": plugin.teacher, "tokenizer": None, "revision": None})
    return config.model_copy(update={"model": section})
