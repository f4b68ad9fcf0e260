# ruff: noqa: N803, N806 (suffixes are shapes)
"""Losses of tokens and their gradients by the logits.

Legend: K tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sftkit.api import HeadLoss, TokenLosses, at_target, minus_target

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ChosenLoss(HeadLoss):
    """Negative log-likelihood, perhaps times the target's probability, or against smoothed targets.

    Sources: Wu et al., 2025, On the Generalization of SFT (arXiv 2508.05629), for dft; Szegedy et al., 2016, Rethinking
    the Inception Architecture for Computer Vision, section 7, for label smoothing.
    """

    dft: bool
    label_smoothing: float
    entropy: bool

    def tokens(self, logits_KV: Tensor, targets_K: Tensor, gradient: bool) -> TokenLosses:
        """The loss of each token, with the measure ``entropy`` if it is enabled."""
        logp_KV = torch.log_softmax(logits_KV, 1)
        nll_K, smoothing = -at_target(logp_KV, targets_K), self.label_smoothing
        losses_K = nll_K
        if smoothing:
            losses_K = (1 - smoothing) * nll_K - smoothing * logp_KV.mean(1)
        weights_K = (-nll_K).exp() if self.dft else None
        if weights_K is not None:
            losses_K = weights_K * nll_K
        measures, p_KV = {}, None
        if self.entropy:
            p_KV = logp_KV.exp()
            measures["entropy"] = -(p_KV * logp_KV).sum(1)
        if not gradient:
            return TokenLosses(losses_K, None, measures)
        gradient_KV = minus_target(logp_KV.exp_() if p_KV is None else p_KV, targets_K, 1 - smoothing)
        if smoothing:
            gradient_KV -= smoothing / logits_KV.shape[1]
        if weights_K is not None:  # the weight is a reward, and so held constant
            gradient_KV *= weights_K[:, None]
        return TokenLosses(losses_K, gradient_KV, measures)
