# ruff: noqa: N803, N806, N815 (suffixes are shapes)
"""The loss of trained tokens, from their hidden states: logits exist for a chunk of them at a time, and only once.

Legend: K trained tokens, k those of a chunk, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

#: Bytes of a chunk's logits in float32: on a CPU they stay in its cache, elsewhere matrix products are large enough.
CHUNK_BYTES_CPU, CHUNK_BYTES = 1 << 24, 1 << 29
LEAST_CHUNK = 16  # tokens


class TokenLosses(NamedTuple):
    """What a loss says of the tokens of a chunk.

    Attributes:
        losses_K: loss of each token (float32).
        gradient_KV: gradient of each token's loss by its logits (float32); None where it was not asked for.
        measures: further values of each token by name (float32, ``[K]``), whose means are logged.
    """

    losses_K: Tensor
    gradient_KV: Tensor | None
    measures: dict[str, Tensor]


@dataclass(frozen=True)
class OutputHead:
    """What makes logits of hidden states.

    Attributes:
        vocabulary: logits of a token.
        forward: hidden states ``[1, k, D]`` → logits ``[1, k, V]``, without what the model does to them afterwards.
        weight: ``[V, D]``, where ``forward`` is no more than a linear layer; else None.
        bias: ``[V]``, if that layer has one.
        post: what the model does to its logits afterwards, as a cap or a scale; None where it does nothing.
    """

    vocabulary: int
    forward: Callable[[Tensor], Tensor]
    weight: Tensor | None = None
    bias: Tensor | None = None
    post: Callable[[Tensor], Tensor] | None = None

    def trained(self, hidden_KD: Tensor) -> list[Tensor]:
        """The trained tensors that the logits depend on, wherever they are kept; found by trying one token."""
        if self.weight is not None:
            return [tensor for tensor in (self.weight, self.bias) if tensor is not None and tensor.requires_grad]
        with torch.enable_grad():
            return list(_leaves(self.forward(hidden_KD[:1].detach().unsqueeze(0))))


@dataclass
class LossResult:
    """The loss of trained tokens, and its gradients where they were asked for.

    Attributes:
        losses_K: loss of each token times its weight (float32).
        measures: further values of each token by name (float32, ``[K]``); ``token_accuracy`` is always there.
        hidden_KD: gradient of the sum by the hidden states.
        parameters: gradients of the sum by the head's trained tensors, in their order.
    """

    losses_K: Tensor
    measures: dict[str, Tensor]
    hidden_KD: Tensor | None = None
    parameters: list[Tensor] = field(default_factory=list)


class HeadLoss:
    """Negative log-likelihood of the target tokens; other losses override `tokens`, or `run` as a whole.

    Gradients are made in the forward, chunk by chunk: a chunk's logits are used and forgotten, so that memory does not
    grow with the vocabulary times the tokens, and no product is computed twice.
    Source: Hsu et al., 2024, Liger Kernel (arXiv 2410.10989), section 3.2.
    """

    def tokens(self, logits_KV: Tensor, targets_K: Tensor, gradient: bool) -> TokenLosses:
        """The loss of each token from its logits (float32), which may be overwritten."""
        logp_KV = torch.log_softmax(logits_KV, 1)
        losses_K = -at_target(logp_KV, targets_K)
        return TokenLosses(losses_K, minus_target(logp_KV.exp_(), targets_K) if gradient else None, {})

    def run(
        self,
        hidden_KD: Tensor,
        head: OutputHead,
        targets_K: Tensor,
        weights_K: Tensor | None,
        trained: Sequence[Tensor] | None,
    ) -> LossResult:
        """The loss of every token.

        Args:
            hidden_KD: hidden states that predict the targets.
            head: makes their logits.
            targets_K: token ids.
            weights_K: of the tokens' losses (float32); None where all are 1.
            trained: the head's tensors by which the sum is differentiated, besides the hidden states; None for no
                gradient at all.
        """
        gradients = None if trained is None else _Gradients(hidden_KD, head, trained, weights_K)
        device = hidden_KD.device
        parts = []
        for at in chunks(len(hidden_KD), head.vocabulary, device):
            source, logits_kV = _logits(hidden_KD[at], head, gradients is not None)
            values_kV = logits_kV.detach().float()
            if logits_kV.requires_grad and logits_kV.dtype == values_kV.dtype:
                values_kV = values_kV.clone()  # the graph behind the logits may need them
            correct_k = (at_target(values_kV, targets_K[at]) >= values_kV.amax(1)).float()
            told = self.tokens(values_kV, targets_K[at], gradients is not None)
            if gradients is not None and told.gradient_KV is not None:
                gradients.add(at, source, logits_kV, told.gradient_KV)
            parts.append({"": told.losses_K, "token_accuracy": correct_k, **told.measures})
        names = parts[0] if parts else ("", "token_accuracy")
        measures = {name: torch.cat([torch.zeros(0, device=device), *(part[name] for part in parts)]) for name in names}
        losses_K = measures.pop("")
        if weights_K is not None:
            losses_K = losses_K * weights_K
        if gradients is None:
            return LossResult(losses_K, measures)
        return LossResult(losses_K, measures, gradients.hidden_KD, gradients.parameters)


def summed_loss(
    loss: HeadLoss, hidden_KD: Tensor, head: OutputHead, targets_K: Tensor, weights_K: Tensor | None = None
) -> tuple[Tensor, LossResult]:
    """The sum of the tokens' losses (a scalar, which can be differentiated once), and what else is known of them."""
    if head.weight is not None:
        hidden_KD = hidden_KD.to(_product_dtype(head.weight))
    if not torch.is_grad_enabled():
        told = loss.run(hidden_KD, head, targets_K, weights_K, None)
        return told.losses_K.sum(), told
    kept: list[LossResult] = []
    trained = head.trained(hidden_KD)

    def run() -> LossResult:
        kept.append(loss.run(hidden_KD.detach(), head, targets_K, weights_K, trained))
        return kept[0]

    total = _Summed.apply(run, hidden_KD, *trained)
    return total, kept[0]


def at_target(values_KV: Tensor, targets_K: Tensor) -> Tensor:
    """Each token's value at its target."""
    return values_KV.gather(1, targets_K[:, None]).squeeze(1)


def minus_target(values_KV: Tensor, targets_K: Tensor, amount: float | Tensor = 1.0) -> Tensor:
    """``values_KV`` with ``amount`` (a number, or one a token) taken away at each token's target, in place."""
    amounts_K = values_KV.new_ones(len(targets_K)) * amount
    return values_KV.scatter_add_(1, targets_K[:, None], -amounts_K[:, None])


def chunks(tokens: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """The tokens in chunks whose logits take about `CHUNK_BYTES`."""
    size = (CHUNK_BYTES_CPU if device.type == "cpu" else CHUNK_BYTES) // (4 * vocabulary)
    size = max(size // 8 * 8, LEAST_CHUNK)
    for low in range(0, tokens, size):
        yield slice(low, min(low + size, tokens))


def _product_dtype(weight: Tensor) -> torch.dtype:
    """What a linear layer computes in: autocast's type inside of it, else the weight's."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _logits(hidden_kD: Tensor, head: OutputHead, gradient: bool) -> tuple[Tensor, Tensor]:
    """The logits of a chunk, and where their graph begins: a plain layer's output, else the hidden states."""
    with torch.set_grad_enabled(gradient):
        if head.weight is not None:
            bias = None if head.bias is None else head.bias.detach().to(hidden_kD.dtype)
            source = logits_kV = functional.linear(hidden_kD, head.weight.detach().to(hidden_kD.dtype), bias)
            if gradient and head.post is not None:
                source.requires_grad_()
        else:
            source = hidden_kD.detach().requires_grad_(gradient)
            logits_kV = head.forward(source.unsqueeze(0)).squeeze(0)
        return source, logits_kV if head.post is None else head.post(logits_kV.unsqueeze(0)).squeeze(0)


class _Gradients:
    """Gradients by the hidden states and by the head's trained tensors, summed up over chunks."""

    def __init__(
        self, hidden_KD: Tensor, head: OutputHead, trained: Sequence[Tensor], weights_K: Tensor | None
    ) -> None:
        self.hidden_KD = torch.empty_like(hidden_KD)
        fill = torch.zeros_like if not len(hidden_KD) or head.weight is None else torch.empty_like
        self.parameters = [fill(tensor) for tensor in trained]
        self._inputs_KD, self._head, self._trained, self._weights_K = hidden_KD, head, trained, weights_K

    def add(self, at: slice, source: Tensor, logits_kV: Tensor, gradient_kV: Tensor) -> None:
        """Take in a chunk: ``gradient_kV`` is by ``logits_kV``, whose graph begins at ``source``."""
        if self._weights_K is not None and self._head.weight is None:
            gradient_kV = gradient_kV * self._weights_K[at, None]
        if logits_kV.requires_grad:
            inputs = [source, *(self._trained if self._head.weight is None else ())]
            gradient_kV, *found = torch.autograd.grad(
                logits_kV, inputs, gradient_kV.to(logits_kV.dtype), allow_unused=True
            )
            for total, gradient in zip(self.parameters, found, strict=False):
                total += 0 if gradient is None else gradient
        if self._head.weight is None:
            self.hidden_KD[at] = gradient_kV
        else:
            self._through_linear(at, self._head.weight, gradient_kV)

    def _through_linear(self, at: slice, weight: Tensor, gradient_kV: Tensor) -> None:
        gradient_kV, inputs_kD = gradient_kV.to(self.hidden_KD.dtype), self._inputs_KD[at]
        torch.mm(gradient_kV, weight.detach().to(gradient_kV.dtype), out=self.hidden_KD[at])
        if self._weights_K is not None:  # on the narrow side: nothing as wide as the vocabulary is touched again
            weights_k = self._weights_K[at, None].to(inputs_kD.dtype)
            self.hidden_KD[at] *= weights_k
            inputs_kD = inputs_kD * weights_k
        first = at.start == 0
        for tensor, total in zip(self._trained, self.parameters, strict=True):
            if tensor is not weight:
                ones_k = gradient_kV.new_ones(len(gradient_kV)) if self._weights_K is None else weights_k[:, 0]
                total.copy_(ones_k @ gradient_kV) if first else total.add_(ones_k @ gradient_kV)
            elif total.dtype == gradient_kV.dtype:
                total.addmm_(gradient_kV.t(), inputs_kD, beta=0 if first else 1)
            else:
                product_VD = gradient_kV.t() @ inputs_kD
                total.copy_(product_VD) if first else total.add_(product_VD)


def _leaves(output: Tensor) -> Iterator[Tensor]:
    """The trained tensors at the ends of a graph."""
    seen, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [following for following, _ in node.next_functions]


class _Summed(torch.autograd.Function):
    """A sum whose gradients are known when it is computed: they wait for the backward, which scales them."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[], LossResult], hidden_KD: Tensor, *trained: Tensor) -> Tensor:
        told = run()
        ctx.found = [told.hidden_KD, *told.parameters]
        return told.losses_K.sum()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        found, ctx.found = ctx.found, None
        if found is None:
            raise RuntimeError("the loss was differentiated before: its gradients are given out once")
        return None, *(part.mul_(scale.to(part.dtype)) for part in found)
