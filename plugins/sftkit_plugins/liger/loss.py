# ruff: noqa: N803, N806 (suffixes are shapes)
"""Liger's cross-entropy as the loss of a run: from the logits of a chunk, or fused with the output head.

Legend: K trained tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sftkit.api import HeadLoss, LossResult, OutputHead, Problem, RunError, TokenLosses

logger = logging.getLogger("sftkit")
CHUNK_BYTES = 1 << 29  # of a chunk's logits in float32, as in the core; liger rounds the tokens up to a power of 2
IGNORED = -1  # not a token id, because every target of a HeadLoss is trained
FUSED = "plugin liger, option fused_linear_cross_entropy"


class CrossEntropy(HeadLoss):
    """Negative log-likelihood by liger's kernel, which overwrites the logits with their gradient."""

    def tokens(self, logits_KV: Tensor, targets_K: Tensor, gradient: bool) -> TokenLosses:
        """The loss of each token from its logits (float32), which are overwritten."""
        from liger_kernel.ops.cross_entropy import cross_entropy_forward

        logits_KV = logits_KV.detach().requires_grad_(gradient)  # liger computes a gradient only if this is set
        losses_K, *_, left_KV = cross_entropy_forward(
            logits_KV, targets_K, None, IGNORED, 0.0, 0.0, "none", None, False
        )
        return TokenLosses(losses_K.detach(), left_KV.detach() if gradient else None, {})


class LogitChange(NamedTuple):
    """How a model changes its logits: ``cap * tanh(scale * x / cap)``, or ``scale * x`` without a cap."""

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, head: OutputHead, device: torch.device) -> LogitChange | None:
        """The change that this head makes, measured on its own function; None if it has another form."""
        if head.post is None:
            return cls()

        def at(value: float) -> float:
            assert head.post is not None
            return float(head.post(torch.full((1, 1, head.vocabulary), value, device=device)).flatten()[0])

        most = at(1e9)
        cap = most if 0 < most < 1e5 else None
        near = at(1.0) if cap is None else cap * math.atanh(min(at(1.0) / cap, 0.999))
        found = cls(1.0 if abs(near - 1) < 1e-4 else near, cap)
        generator = torch.Generator().manual_seed(0)
        x = (torch.randn(1, 4, head.vocabulary, generator=generator) * 30).to(device)
        return found if torch.allclose(head.post(x), found(x), rtol=1e-4, atol=1e-4) else None

    def __call__(self, logits: Tensor) -> Tensor:
        """The changed logits."""
        scaled = logits * self.scale
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)


class FusedLinearCrossEntropy(CrossEntropy):
    """Negative log-likelihood by liger's kernel fused with the output head, on trained positions only.

    Args:
        required: whether to refuse a head that the kernel cannot be fused with. Otherwise the core computes the
            logits of each chunk, the plain kernel computes the loss from them, and a warning is logged.
    """

    def __init__(self, required: bool) -> None:
        self.required = required
        self._change: LogitChange | None = None
        self._known = False

    def run(
        self,
        hidden_KD: Tensor,
        head: OutputHead,
        targets_K: Tensor,
        weights_K: Tensor | None,
        trained: Sequence[Tensor] | None,
    ) -> LossResult:
        """The loss of every token, as in `HeadLoss`.

        Raises:
            RunError: if the kernel is required but cannot be fused with the head.
        """
        if not self._known:
            self._look_at(head, hidden_KD.device)
        if self._change is None or head.weight is None or not len(hidden_KD):
            return super().run(hidden_KD, head, targets_K, weights_K, trained)
        return _fused(hidden_KD, head, self._change, targets_K, weights_K, trained)

    def _look_at(self, head: OutputHead, device: torch.device) -> None:
        self._known = True
        self._change = None if head.weight is None else LogitChange.of(head, device)
        if self._change is not None:
            return
        what = "the output head is not a plain linear layer" if head.weight is None else "the model changes its logits"
        what += ", which liger's fused loss does not support"
        if self.required:
            raise RunError(Problem(what, FUSED, "set cross_entropy: true instead"))
        logger.warning("liger: %s; using the plain cross-entropy on the logits of a chunk instead", what)


def _chunk_factor(tokens: int, hidden: int) -> int:
    """Liger's limit on a chunk's logits, in multiples of the hidden states' size, for chunks of `CHUNK_BYTES`.

    Its default of 1 makes chunks of 100 tokens for a small model with a large vocabulary, whose products are slow.
    """
    return max(CHUNK_BYTES // 4 // (tokens * hidden), 1)


def _fused(
    hidden_KD: Tensor,
    head: OutputHead,
    change: LogitChange,
    targets_K: Tensor,
    weights_K: Tensor | None,
    trained: Sequence[Tensor] | None,
) -> LossResult:
    from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward

    assert head.weight is not None
    weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach() * change.scale
    wants_weight = trained is not None and any(tensor is head.weight for tensor in trained)
    losses_K, _, correct_K, _, gradient_KD, gradient_VD, gradient_V = fused_linear_cross_entropy_forward(
        hidden_KD * change.scale,  # scaling here is cheaper than scaling the logits
        weight,
        targets_K,
        bias=bias,
        ignore_index=IGNORED,
        reduction="none",
        softcap=change.cap,
        return_token_accuracy=True,
        token_grad_output=weights_K,
        compute_gradients=trained is not None,
        weight_requires_grad=wants_weight,
        chunk_mem_const=_chunk_factor(*hidden_KD.shape),
    )
    if weights_K is not None:
        losses_K = losses_K * weights_K
    measures = {"token_accuracy": correct_K}
    if trained is None:
        return LossResult(losses_K, measures)
    found = [gradient_VD if tensor is head.weight else gradient_V * change.scale for tensor in trained]
    return LossResult(losses_K, measures, gradient_KD * change.scale, found)
