"""What plugins make for the trainer: a loss that trains, and callbacks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sftkit.errors import HookError, Problem, RunError, SftkitError

if TYPE_CHECKING:
    from sftkit.plugin.selected import PluginSet
    from sftkit.training.loss import HeadLoss

TOKENS, VOCABULARY = 4, 32  # of the logits on which a loss is tried; the vocabulary is the model's if there is one


def require_loss(loss: Any, model: Any, plugins: PluginSet) -> None:
    """Check what ``make_loss`` returned, and try its ``tokens`` on random logits.

    Args:
        loss: what it returned.
        model: the model to train, if it is loaded.
        plugins: the selected plugins.

    Raises:
        RunError: if it is no `HeadLoss`, or what it computes has the wrong shape, is not finite, or has no gradient.
    """
    from sftkit.training.loss import HeadLoss

    if not isinstance(loss, HeadLoss):
        what = f"it returns an object of type {type(loss).__name__}"
        raise RunError(Problem(what, plugins.responsible("make_loss"), "return a HeadLoss of sftkit.api"))
    if type(loss).run is not HeadLoss.run:  # it may need more than logits
        return
    try:
        what = _wrong_losses(loss, model)
    except SftkitError:
        raise
    except Exception as error:  # a plugin's code
        raise HookError(plugins.first_filler("make_loss"), "make_loss", error) from error
    if what:
        fix = "return each token's loss, and its gradient by the logits if it is requested"
        raise RunError(Problem(what, plugins.responsible("make_loss"), fix))


def _wrong_losses(loss: HeadLoss, model: Any) -> str:
    import torch

    device = torch.device("cpu") if model is None else next(model.parameters()).device
    vocabulary = VOCABULARY if model is None else model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    logits_KV = torch.randn(TOKENS, vocabulary, generator=generator).to(device)  # noqa: N806 (suffixes are shapes)
    made = loss.tokens(logits_KV.clone(), torch.arange(TOKENS, device=device), True)
    gradient = made.gradient_KV
    if made.losses_K.shape != (TOKENS,):
        return f"its losses have the shape {tuple(made.losses_K.shape)} for {TOKENS} tokens"
    if gradient is None:
        return "it computes no gradient"
    if gradient.shape != logits_KV.shape:
        return f"its gradient has the shape {tuple(gradient.shape)} for logits of shape {tuple(logits_KV.shape)}"
    if not made.losses_K.isfinite().all() or not gradient.isfinite().all():
        return "its loss or gradient is not finite for ordinary logits"
    return "" if gradient.any() else "its gradient is zero for ordinary logits: nothing would be trained"


def callbacks_of(plugins: PluginSet, config: Any) -> list[Any]:
    """The plugins' `TrainerCallback` objects.

    Raises:
        RunError: if a plugin returns anything else.
    """
    from transformers import TrainerCallback

    found = []
    for plugin, callbacks in plugins.hook.trainer_callbacks(config=config):
        some = list(callbacks) if isinstance(callbacks, Iterable) else [callbacks]
        for each in some:
            cls = each if isinstance(each, type) else type(each)
            if not isinstance(callbacks, Iterable) or not issubclass(cls, TrainerCallback):
                what = f"it returns {callbacks!r}"
                fix = "return a list of TrainerCallback objects"
                raise RunError(Problem(what, f"plugin {plugin}, hook trainer_callbacks", fix))
        found += some
    return found
