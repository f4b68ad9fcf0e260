# ruff: noqa: N803, N806 (suffixes are shapes)
"""A loss is computed token by token, with its gradient, and is the same however a batch is divided."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sftkit.run.guards.training import FIX_LOSS, wrong_losses
from sftkit.testing.conformance.checks import CheckFailed, check, require, skip
from sftkit.testing.conformance.kernels import LOGITS, distance
from sftkit.training.loss import HeadLoss, OutputHead

if TYPE_CHECKING:
    from sftkit.testing.conformance.workbench import Workbench

VOCABULARY = 50
#: How far the derivative may be from the gradient, as a share of its size, and the length of the step that finds it.
DERIVATIVE, DISTANCE = 0.02, 0.05


@check("make_loss")
def loss_is_finite(bench: Workbench, hook: str) -> None:
    """Losses and gradients are finite, and there is a gradient, against which the loss falls"""
    import torch

    loss = _made(bench)
    if not _from_hidden(loss) and (what := wrong_losses(loss, VOCABULARY, torch.device(bench.device))):
        raise CheckFailed(what, FIX_LOSS)
    found = _loss(bench)
    for name, value in found.items():
        require(bool(value.isfinite().all()), f"{name} are not finite", "compute in float32, from log_softmax")
    what = "the gradient by the hidden states is 0"
    require(bool(found["gradients"].abs().sum() > 0), what, "return gradient_KV when gradient is true")


@check("make_loss")
def gradient_is_the_derivative(bench: Workbench, hook: str) -> None:
    """The gradient is the derivative of the losses, or that of the negative log-likelihood times a weight"""
    import torch

    loss = _made(bench)
    if _from_hidden(loss):
        skip("the loss computes its gradients from hidden states")
    generator = torch.Generator().manual_seed(0)
    logits_KV = torch.randn(16, VOCABULARY, generator=generator).to(bench.device)
    targets_K = torch.randint(0, VOCABULARY, (16,), generator=generator).to(bench.device)
    gradient_KV = _tokens(loss, logits_KV, targets_K, True).gradient_KV
    likelihood_KV = _tokens(HeadLoss(), logits_KV, targets_K, True).gradient_KV
    weights_K = (gradient_KV * likelihood_KV).sum(1) / likelihood_KV.pow(2).sum(1)
    size_K = gradient_KV.norm(dim=1)
    weighted_K = (gradient_KV - weights_K[:, None] * likelihood_KV).norm(dim=1) <= DERIVATIVE * size_K
    wrong_K = torch.zeros_like(weighted_K)
    for direction_KV in (gradient_KV, torch.randn(16, VOCABULARY, generator=generator).to(bench.device)):
        step_KV = DISTANCE * direction_KV / direction_KV.norm(dim=1, keepdim=True).clamp(min=1e-12)
        above_K, below_K = (_tokens(loss, logits_KV + sign * step_KV, targets_K, False).losses_K for sign in (1, -1))
        expected_K = (gradient_KV * step_KV).sum(1)
        wrong_K |= ((above_K - below_K) / 2 - expected_K).abs() > DERIVATIVE * DISTANCE * size_K + 1e-5
    count = int((wrong_K & ~weighted_K).sum())
    if count > len(targets_K) // 4:  # a few may lie where the loss has a kink
        what = f"the gradient of {count} of {len(targets_K)} tokens is not the derivative of their losses"
        skip(f"{what}; that is right if the loss holds something constant, and a mistake if not")


@check("make_loss")
def loss_of_halves(bench: Workbench, hook: str) -> None:
    """A batch in two parts has the same losses and gradients"""
    import torch

    whole = _loss(bench)
    halves = [_loss(bench, at) for at in (slice(0, 7), slice(7, None))]
    for name, value in whole.items():
        together = torch.cat([half[name] for half in halves])
        fix = "compute the loss of a token from its own logits; losses are averaged over the whole batch later"
        apart = distance(together, value)
        require(apart <= LOGITS, f"{name} differ by {apart:.2g} when the tokens come in two parts", fix)


@check("make_loss")
def loss_without_gradient(bench: Workbench, hook: str) -> None:
    """Without gradients, as in an evaluation, the losses are the same"""
    plain, expected = _loss(bench, gradient=False), _loss(bench)
    apart = distance(plain["losses"], expected["losses"])
    require(apart <= LOGITS, f"the losses differ by {apart:.2g}", "compute them in the same way in both cases")


def _made(bench: Workbench) -> HeadLoss:
    """The plugin's loss.

    Raises:
        CheckSkipped: if it makes none for the kit's run.
    """
    loss = bench.own("make_loss", model=bench.model(), config=bench.config)
    if loss is None:
        skip("it leaves the loss of the kit's run to another plugin")
    if type(loss).of_batch is not HeadLoss.of_batch:
        skip("the loss needs a batch")
    return loss


def _from_hidden(loss: HeadLoss) -> bool:
    """Whether a loss is computed from hidden states, and not from logits; or is the negative log-likelihood."""
    return type(loss).tokens is HeadLoss.tokens or type(loss).run is not HeadLoss.run


def _tokens(loss: HeadLoss, logits_KV: Any, targets_K: Any, gradient: bool) -> Any:
    """The losses of tokens from their logits.

    Raises:
        CheckSkipped: if their shapes are wrong, which another check reports.
    """
    made = loss.tokens(logits_KV.clone(), targets_K, gradient)
    right = made.losses_K.shape == targets_K.shape
    if not right or (gradient and getattr(made.gradient_KV, "shape", None) != logits_KV.shape):
        skip("the loss of a token, or its gradient, is missing")
    return made


def _loss(bench: Workbench, at: slice = slice(None), gradient: bool = True) -> dict[str, Any]:
    """The losses and gradients of some tokens of a fixed batch."""
    import torch

    loss = _made(bench)
    if not _from_hidden(loss):
        some = torch.zeros(2, VOCABULARY, device=bench.device)
        _tokens(loss, some, torch.arange(2, device=bench.device), gradient)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(16, 32, generator=generator).to(bench.device)
    weight = torch.randn(VOCABULARY, 32, generator=generator).to(bench.device).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (16,), generator=generator).to(bench.device)
    head = OutputHead(VOCABULARY, lambda states: states @ weight.T, weight)
    chosen = [weight] if gradient else None
    with torch.no_grad():
        found = loss.run(hidden[at], head, targets[at], None, chosen)
    count = len(targets[at])
    shape = tuple(found.losses_K.shape)
    require(shape == (count,), f"{count} tokens have losses of shape {shape}", "return one loss for each token")
    for name, values in found.measures.items():
        require(
            len(values) == count, f"{count} tokens have {len(values)} values of {name}", "return one for each token"
        )
    made = {"losses": found.losses_K.detach()}
    return made | ({"gradients": found.hidden_KD.detach()} if gradient and found.hidden_KD is not None else {})
