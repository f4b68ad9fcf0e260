"""A loss is computed token by token, with its gradient, and is the same however a batch is divided."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sftkit.testing.conformance.checks import check, require, skip
from sftkit.testing.conformance.kernels import LOGITS, distance

if TYPE_CHECKING:
    from sftkit.testing.conformance.workbench import Workbench


@check("make_loss")
def loss_is_finite(bench: Workbench, hook: str) -> None:
    """Losses and gradients are finite, and there is a gradient"""
    found = _loss(bench)
    for name, value in found.items():
        require(bool(value.isfinite().all()), f"{name} are not finite", "compute in float32, from log_softmax")
    what = "the gradient by the hidden states is 0"
    require(bool(found["gradients"].abs().sum() > 0), what, "return gradient_KV when gradient is true")


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


def _loss(bench: Workbench, at: slice = slice(None), gradient: bool = True) -> dict[str, Any]:
    """The losses and gradients of some tokens of a fixed batch."""
    import torch

    from sftkit.training.loss import OutputHead

    loss = bench.own("make_loss", model=bench.model(), config=bench.config)
    if loss is None:
        skip("it leaves the loss of the kit's run to another plugin")
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(16, 32, generator=generator).to(bench.device)
    weight = torch.randn(50, 32, generator=generator).to(bench.device).requires_grad_()
    targets = torch.randint(0, 50, (16,), generator=generator).to(bench.device)
    head = OutputHead(50, lambda states: states @ weight.T, weight)
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
