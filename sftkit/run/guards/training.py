# ruff: noqa: N803, N806 (suffixes are shapes)
"""What plugins make for the trainer: a loss that trains, and callbacks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sftkit.errors import HookError, Problem, RunError, SftkitError

if TYPE_CHECKING:
    import torch

    from sftkit.plugin.selected import PluginSet
    from sftkit.training.loss import HeadLoss

TOKENS = 4  # of the logits on which a loss is tried
STEP = 0.1  # length of the step of each token's logits against the gradient
FIX_LOSS = "return each token's loss, and its gradient by the logits if it is requested"


def require_loss(loss: Any, plugins: PluginSet) -> HeadLoss:
    """What ``make_loss`` returned.

    Raises:
        RunError: if it is no `HeadLoss`.
    """
    from sftkit.training.loss import HeadLoss

    if isinstance(loss, HeadLoss):
        return loss
    what = f"it returns an object of type {type(loss).__name__}"
    raise RunError(Problem(what, plugins.responsible("make_loss"), "return a HeadLoss of sftkit.api"))


def try_loss(loss: HeadLoss, model: Any, device: torch.device, plugins: PluginSet) -> None:
    """Compute a plugin's loss of random logits, before the first step; one that overrides ``run`` may need more.

    Args:
        loss: the loss.
        model: the model to train, for its vocabulary.
        device: the device of the training: kernels may compute on no other.
        plugins: the selected plugins.

    Raises:
        HookError: if the loss fails.
        RunError: if what it computes has the wrong shape, is not finite, or has no gradient or one of the wrong sign.
    """
    from sftkit.training.loss import HeadLoss

    if type(loss).tokens is HeadLoss.tokens or type(loss).run is not HeadLoss.run:
        return
    try:
        what = wrong_losses(loss, model.config.get_text_config().vocab_size, device)
    except SftkitError:
        raise
    except Exception as error:  # a plugin's code
        raise HookError(plugins.first_filler("make_loss"), "make_loss", error) from error
    if what:
        raise RunError(Problem(what, plugins.responsible("make_loss"), FIX_LOSS))


def wrong_losses(loss: HeadLoss, vocabulary: int, device: torch.device) -> str:
    """What is wrong with the losses of random logits, or with their gradient; empty if nothing is."""
    import torch

    from sftkit.training.loss import HeadLoss

    generator = torch.Generator().manual_seed(0)
    logits_KV = torch.randn(TOKENS, vocabulary, generator=generator).to(device)
    targets_K = torch.arange(TOKENS, device=device)
    made = loss.tokens(logits_KV.clone(), targets_K, True)
    gradient = made.gradient_KV
    if made.losses_K.shape != (TOKENS,):
        return f"its losses have the shape {tuple(made.losses_K.shape)} for {TOKENS} tokens"
    if gradient is None:
        return "it computes no gradient"
    if gradient.shape != logits_KV.shape:
        return f"its gradient has the shape {tuple(gradient.shape)} for logits of shape {tuple(logits_KV.shape)}"
    if not made.losses_K.isfinite().all() or not gradient.isfinite().all():
        return "its loss or gradient is not finite for ordinary logits"
    if not gradient.any():
        return "its gradient is zero for ordinary logits: nothing would be trained"
    nearer_KV = logits_KV - STEP * gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-12)
    if all(_rises(each, logits_KV, nearer_KV, targets_K) for each in (loss, HeadLoss())):
        return "a small step against its gradient makes the loss of every token larger: its sign is wrong"
    return ""


def _rises(loss: HeadLoss, before_KV: torch.Tensor, after_KV: torch.Tensor, targets_K: torch.Tensor) -> bool:
    """Whether every token has a larger loss afterwards."""
    before, after = (loss.tokens(logits.clone(), targets_K, False).losses_K for logits in (before_KV, after_KV))
    return bool((after > before).all())


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
