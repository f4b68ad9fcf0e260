# ruff: noqa: N803, N806, N815 (suffixes are shapes)
"""The distance of a student's distributions from a teacher's, and its gradient by the student's log-probabilities.

Legend: K tokens, B alternatives of a token: the vocabulary, or some of its tokens and the rest of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

#: Log-probability of what is impossible: finite, so that no product with a probability of 0 is undefined.
FLOOR = -1e4


class Distance(NamedTuple):
    """The distance of each token (``[K]``), and its gradient by the student's log-probabilities (``[K, B]``)."""

    value_K: Tensor
    gradient_KB: Tensor


#: Of the student's log-probabilities and the teacher's.
Divergence = Callable[["Tensor", "Tensor"], Distance]


def divergence(kl: str, beta: float) -> Divergence:
    """The function of a name.

    Args:
        kl: ``forward``, ``reverse`` or ``jsd``.
        beta: the teacher's share of the mixture of ``jsd``.
    """
    if kl == "jsd":
        return lambda student_KB, teacher_KB: jensen_shannon(student_KB, teacher_KB, beta)
    return forward_kl if kl == "forward" else reverse_kl


def forward_kl(student_KB: Tensor, teacher_KB: Tensor) -> Distance:
    """The sum of q (log q - log p), with q of the teacher and p of the student."""
    q_KB = teacher_KB.exp()
    return Distance((q_KB * (teacher_KB - student_KB)).sum(1), q_KB.neg_())


def reverse_kl(student_KB: Tensor, teacher_KB: Tensor) -> Distance:
    """The sum of p (log p - log q), with q of the teacher and p of the student."""
    p_KB, apart_KB = student_KB.exp(), student_KB - teacher_KB
    return Distance((p_KB * apart_KB).sum(1), p_KB * (apart_KB + 1))


def jensen_shannon(student_KB: Tensor, teacher_KB: Tensor, beta: float) -> Distance:
    """Beta KL(q | m) + (1 - beta) KL(p | m), where m is the mixture beta q + (1 - beta) p.

    Source: Agarwal et al., 2024, On-Policy Distillation of Language Models (arXiv 2306.13649), equation 1.
    """
    p_KB, q_KB = student_KB.exp(), teacher_KB.exp()
    mixed_KB = (beta * q_KB + (1 - beta) * p_KB).log_().clamp_(min=FLOOR)
    gradient_KB = p_KB * (student_KB - mixed_KB) * (1 - beta)
    value_K = beta * (q_KB * (teacher_KB - mixed_KB)).sum(1) + gradient_KB.sum(1)
    return Distance(value_K, gradient_KB)


def log_probabilities(logits_KB: Tensor, temperature: float) -> Tensor:
    """Log-probabilities at a temperature, at least `FLOOR`; the logits are not changed."""
    return torch.log_softmax(logits_KB if temperature == 1 else logits_KB / temperature, 1).clamp_(min=FLOOR)
