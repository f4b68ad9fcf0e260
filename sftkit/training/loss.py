"""The loss: the mean over the trained tokens of the whole accumulation window.

Legend: B rows, T positions, V vocabulary, K trained tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftkit.data.columns import IGNORE

if TYPE_CHECKING:
    from torch import Tensor


def trained_token_loss(
    logits_BTV: Tensor,  # noqa: N803 (suffixes are shapes)
    labels_BT: Tensor,  # noqa: N803
    num_items: Tensor | int | None = None,
) -> Tensor:
    """Cross-entropy of the trained tokens, summed and divided by ``num_items``.

    Args:
        logits_BTV: logits, any float type; computed in float32.
        labels_BT: unshifted labels, -100 where not trained.
        num_items: trained tokens of the whole accumulation window over all processes; by default those of this batch.

    Returns:
        A scalar; 0 (with a gradient of 0) for a batch without trained tokens.
    """
    import torch

    targets = labels_BT[:, 1:]
    trained = targets != IGNORE
    logits_KV = logits_BTV[:, :-1][trained].float()  # noqa: N806
    total = torch.nn.functional.cross_entropy(logits_KV, targets[trained].to(logits_KV.device), reduction="sum")
    divisor = trained.sum().clamp(min=1) if num_items is None else num_items
    return total / (divisor.to(total.device) if torch.is_tensor(divisor) else divisor)


def row_losses(
    logits_BTV: Tensor,  # noqa: N803
    labels_BT: Tensor,  # noqa: N803
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy and number of the trained tokens of each row (float32 and int64, ``[B]``)."""
    import torch

    targets = labels_BT[:, 1:]
    trained = targets != IGNORE
    losses_K = torch.nn.functional.cross_entropy(  # noqa: N806
        logits_BTV[:, :-1][trained].float(), targets[trained], reduction="none"
    )
    row_K = trained.nonzero()[:, 0]  # noqa: N806
    return losses_K.new_zeros(len(targets)).index_add(0, row_K, losses_K), trained.sum(1)
