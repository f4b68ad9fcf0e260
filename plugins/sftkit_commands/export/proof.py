"""Whether two models compute the same: their logits on rows, and the tokens that they would choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit.api import Problem, RunError

if TYPE_CHECKING:
    from torch import Tensor

#: By dtype of the weights: the largest difference of a logit, in standard deviations of the logits, and the least share
#: of positions at which the same token is the most likely one. docs/export.md explains them.
TOLERANCES = {"float32": (1e-3, 0.999), "float16": (0.05, 0.99), "bfloat16": (0.4, 0.95)}


@dataclass(frozen=True)
class Comparison:
    """Two models on the same rows.

    Attributes:
        difference: the largest difference of a logit.
        relative: the same in standard deviations of the logits.
        agreement: share of positions at which both models choose the same next token.
        positions: their number.
    """

    difference: float
    relative: float
    agreement: float
    positions: int

    def as_dict(self) -> dict[str, float]:
        """Plain data, for ``--json``."""
        return {
            "logit_difference": self.difference,
            "relative_difference": self.relative,
            "greedy_agreement": self.agreement,
            "positions": self.positions,
        }

    def __str__(self) -> str:
        share = f"{self.agreement:.2%} of {self.positions:,} next tokens agree"
        return f"{share}; largest logit difference {self.difference:.2g} ({self.relative:.2g} standard deviations)"


def logits_of(model: Any, batches: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    """For each row, the logits (``[tokens, vocabulary]``) in float32 on the CPU."""
    import torch

    device = next(model.parameters()).device
    found = []
    with torch.inference_mode():
        for batch in batches:
            inputs = {name: value.to(device) for name, value in batch.items()}
            found.append(model(**inputs, use_cache=False).logits[0].float().cpu())
    return found


def compare(reference: Sequence[Tensor], other: Sequence[Tensor]) -> Comparison:
    """Compare the logits of two models."""
    import torch

    difference = same = positions = 0.0
    squares = 0.0
    for ours, theirs in zip(reference, other, strict=True):
        width = min(ours.shape[-1], theirs.shape[-1])
        ours, theirs = ours[:, :width], theirs[:, :width]
        difference = max(difference, float(torch.nan_to_num(ours - theirs, nan=torch.inf).abs().max()))
        same += float((ours.argmax(-1) == theirs.argmax(-1)).sum())
        positions += len(ours)
        squares += float(ours.var(dim=-1, correction=0).sum())
    deviation = (squares / positions) ** 0.5
    return Comparison(difference, difference / deviation, same / positions, int(positions))


def require_same(found: Comparison, dtype: str, what: str, where: str) -> None:
    """Check a comparison against the tolerance of a dtype.

    Raises:
        RunError: if the models differ by more.
    """
    most, least = TOLERANCES[dtype]
    if found.relative <= most and found.agreement >= least:
        return
    text = f"{what}: {found}; allowed in {dtype} are {most:g} standard deviations and {least:.1%}"
    fix = "export it with --dtype float32" if dtype != "float32" else "export it without --merge, and report this"
    raise RunError(Problem(text, where, fix))
