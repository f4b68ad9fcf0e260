# ruff: noqa: N803, N806, N815 (suffixes are shapes)
"""The trained positions of a batch.

Legend: B rows, T positions, R examples of a padding-free batch (one row), K trained positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sftkit.data.columns import IGNORE_INDEX


@dataclass(frozen=True)
class Targets:
    """The tokens that a batch trains.

    Attributes:
        positions_K: the position before each trained token, as an index of the flattened batch (row times T plus
            column): its hidden state predicts the token.
        tokens_K: ids of the trained tokens.
        weights_K: weights of their losses (float32); None if all are 1.
        shape: B and T.
        row_lengths: tokens of each example of a padding-free batch (``[R]``); None if each example has a row.
    """

    positions_K: Tensor
    tokens_K: Tensor
    weights_K: Tensor | None
    shape: tuple[int, int]
    row_lengths: Tensor | None = None

    @classmethod
    def of(
        cls,
        labels_BT: Tensor,
        weights_BT: Tensor | None = None,
        positions_K: Tensor | None = None,
        row_lengths: Tensor | None = None,
    ) -> Targets:
        """From unshifted labels; if the positions are known already, the device is not waited for."""
        positions_K = trained_positions(labels_BT) if positions_K is None else positions_K
        next_K = positions_K + 1
        weights_K = None if weights_BT is None else weights_BT.flatten()[next_K].float()
        rows, columns = labels_BT.shape
        return cls(positions_K, labels_BT.flatten()[next_K], weights_K, (rows, columns), row_lengths)

    @property
    def rows(self) -> Tensor:
        """The number of the example of each trained token (``[K]``)."""
        if self.row_lengths is None:
            return self.positions_K // self.shape[1]
        ends_R = self.row_lengths.to(self.positions_K.device).cumsum(0)
        return torch.searchsorted(ends_R, self.positions_K, right=True)

    @property
    def weight(self) -> Tensor:
        """The sum of the weights (a scalar): the number of trained tokens if all weights are 1."""
        if self.weights_K is not None:
            return self.weights_K.sum()
        return torch.tensor(float(len(self.tokens_K)), device=self.tokens_K.device)


def trained_positions(labels_BT: Tensor) -> Tensor:
    """The positions (int64, ``[K]``) whose next label is trained, as indices of the flattened batch."""
    trained_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
    trained_BT[:, :-1] = labels_BT[:, 1:] != IGNORE_INDEX
    return trained_BT.flatten().nonzero().squeeze(1)
