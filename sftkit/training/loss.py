# ruff: noqa: N803, N806, N815 (suffixes are shapes)
"""The loss of trained tokens from their hidden states; logits are computed once, for one chunk of tokens at a time.

Legend: K trained tokens, k tokens of a chunk, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from sftkit.training.targets import Targets
from sftkit.training.vocabulary import VocabularyPart

TokenValues: TypeAlias = Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Tensor]]
"""From examples to values of their trained tokens by name: ``[K, ...]``, in the order of the tokens."""

#: Bytes of a chunk's logits in float32: small enough for a CPU's cache, large enough for efficient products elsewhere.
CHUNK_BYTES_CPU, CHUNK_BYTES = 1 << 24, 1 << 29
LEAST_CHUNK = 16  # tokens


class TokenLosses(NamedTuple):
    """The losses of the tokens of a chunk.

    Attributes:
        losses_K: loss of each token (float32).
        gradient_KV: gradient of each token's loss by its logits (float32); None if it was not requested.
        measures: further values of each token by name (float32, ``[K]``), whose means are logged.
    """

    losses_K: Tensor
    gradient_KV: Tensor | None
    measures: dict[str, Tensor]


@dataclass(frozen=True)
class OutputHead:
    """The function from hidden states to logits.

    Attributes:
        vocabulary: the number of logits of a token.
        forward: hidden states ``[1, k, D]`` → logits ``[1, k, V]``, before ``post``.
        weight: ``[V, D]``, if ``forward`` is a plain linear layer; else None.
        bias: ``[V]``, if that layer has one.
        post: the function that the model applies to its logits, such as a cap or a scale; None if there is none.
        part: the process's part of a linear layer that is divided among processes by tokens of the vocabulary; then
            ``weight`` is None, and ``forward`` returns the logits of the whole vocabulary all the same.
    """

    vocabulary: int
    forward: Callable[[Tensor], Tensor]
    weight: Tensor | None = None
    bias: Tensor | None = None
    post: Callable[[Tensor], Tensor] | None = None
    part: VocabularyPart | None = None

    @property
    def linear(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias that this process multiplies by: of all tokens, or of its part; None if ``forward`` does."""
        if self.part is not None:
            return self.part.weight, self.part.bias
        return None if self.weight is None else (self.weight, self.bias)

    def trained(self, hidden_KD: Tensor) -> list[Tensor]:
        """The trained tensors that the logits depend on, found in the graph of one token's logits."""
        if self.linear is not None:
            return [tensor for tensor in self.linear if tensor is not None and tensor.requires_grad]
        with torch.enable_grad():
            return list(_leaves(self.forward(hidden_KD[:1].detach().unsqueeze(0))))


@dataclass
class LossResult:
    """The losses of trained tokens, and the gradients of their sum if they were requested.

    Attributes:
        losses_K: loss of each token times its weight (float32).
        measures: further values of each token by name (float32, ``[K]``), always with ``token_accuracy``.
        hidden_KD: gradient of the sum by the hidden states.
        parameters: gradients of the sum by the head's trained tensors, in their order.
    """

    losses_K: Tensor
    measures: dict[str, Tensor]
    hidden_KD: Tensor | None = None
    parameters: list[Tensor] = field(default_factory=list)


class HeadLoss:
    """Negative log-likelihood of the target tokens; other losses override `tokens`, `chunk` or all of `run`.

    Gradients are computed in the forward, chunk by chunk, and the chunk's logits are freed: memory does not grow with
    the vocabulary times the tokens, and no product is computed twice.
    Source: Hsu et al., 2024, Liger Kernel (arXiv 2410.10989), section 3.2.
    """

    @property
    def models(self) -> Sequence[Any]:
        """Frozen models that the loss runs on each batch, besides the one that is trained."""
        return ()

    @property
    def token_values(self) -> TokenValues | None:
        """Called where batches are made, so it can be pickled; `of_batch` gets what it returns."""
        return None

    def held(self, model: Any, rows: Any, collator: Any) -> AbstractContextManager[Any]:
        """A context manager held around the training, inside those of plugins; arguments as of ``training_context``."""
        return nullcontext()

    def of_batch(self, inputs: Mapping[str, Any], targets: Targets, values: Mapping[str, Tensor]) -> HeadLoss:
        """The loss of one batch; called before the model is.

        Args:
            inputs: arguments of the model's forward, without labels.
            targets: the trained tokens.
            values: from ``token_values``, on the device; empty without it.
        """
        return self

    def chunk(self, at: slice, logits_KV: Tensor, targets_K: Tensor, gradient: bool) -> TokenLosses:
        """As `tokens`, for those of the batch's trained tokens that ``at`` gives."""
        return self.tokens(logits_KV, targets_K, gradient)

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
            head: computes their logits.
            targets_K: token ids.
            weights_K: weights of the tokens' losses (float32); None if all are 1.
            trained: the head's tensors whose gradients are needed besides that of the hidden states; None if no
                gradient is needed.
        """
        gradients = None if trained is None else _Gradients(hidden_KD, head, trained, weights_K)
        device = hidden_KD.device
        parts = []
        for at in chunks(len(hidden_KD), head.vocabulary, device):
            source, logits_kV = logits_of(hidden_KD[at], head, gradients is not None)
            values_kV = logits_kV.detach().float()
            if logits_kV.requires_grad and logits_kV.dtype == values_kV.dtype:
                values_kV = values_kV.clone()  # the logits may be needed by their own graph
            correct_k = (at_target(values_kV, targets_K[at]) >= values_kV.amax(1)).float()
            made = self.chunk(at, values_kV, targets_K[at], gradients is not None)
            if gradients is not None and made.gradient_KV is not None:
                gradients.add(at, source, logits_kV, made.gradient_KV)
            parts.append({"": made.losses_K, "token_accuracy": correct_k, **made.measures})
        names = parts[0] if parts else ("", "token_accuracy")
        measures = {name: torch.cat([torch.zeros(0, device=device), *(part[name] for part in parts)]) for name in names}
        losses_K = measures.pop("")
        if weights_K is not None:
            losses_K = losses_K * weights_K
        if gradients is None:
            return LossResult(losses_K, measures)
        if head.part is not None:
            head.part.sum(gradients.hidden_KD)
        return LossResult(losses_K, measures, gradients.hidden_KD, gradients.parameters)


def summed_loss(
    loss: HeadLoss, hidden_KD: Tensor, head: OutputHead, targets_K: Tensor, weights_K: Tensor | None = None
) -> tuple[Tensor, LossResult]:
    """The sum of the tokens' losses (a scalar that can be differentiated once), and the losses themselves."""
    if head.linear is not None:
        hidden_KD = hidden_KD.to(_product_dtype(head.linear[0]))
    if not torch.is_grad_enabled():
        result = loss.run(hidden_KD, head, targets_K, weights_K, None)
        return result.losses_K.sum(), result
    kept: list[LossResult] = []
    trained = head.trained(hidden_KD)

    def run() -> LossResult:
        kept.append(loss.run(hidden_KD.detach(), head, targets_K, weights_K, trained))
        return kept[0]

    total = _Summed.apply(run, hidden_KD, *trained)
    return total, kept[0]


def at_target(values_KV: Tensor, targets_K: Tensor) -> Tensor:
    """The value of each token at its target."""
    return values_KV.gather(1, targets_K[:, None]).squeeze(1)


def minus_target(values_KV: Tensor, targets_K: Tensor, amount: float | Tensor = 1.0) -> Tensor:
    """``values_KV`` with ``amount`` (one number, or one per token) subtracted at each token's target, in place."""
    amounts_K = values_KV.new_ones(len(targets_K)) * amount
    return values_KV.scatter_add_(1, targets_K[:, None], -amounts_K[:, None])


def chunks(tokens: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """Slices of the tokens whose logits take about `CHUNK_BYTES`."""
    size = (CHUNK_BYTES_CPU if device.type == "cpu" else CHUNK_BYTES) // (4 * vocabulary)
    size = max(size // 8 * 8, LEAST_CHUNK)
    for low in range(0, tokens, size):
        yield slice(low, min(low + size, tokens))


def _product_dtype(weight: Tensor) -> torch.dtype:
    """The type in which a linear layer computes: that of autocast if it is on, else that of the weight."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def logits_of(hidden_kD: Tensor, head: OutputHead, gradient: bool) -> tuple[Tensor, Tensor]:
    """The start of the graph of a chunk's logits (a plain layer's output, else the hidden states), and the logits."""
    with torch.set_grad_enabled(gradient):
        if head.linear is not None:
            dtype, (weight, bias) = hidden_kD.dtype, head.linear
            bias = None if bias is None else bias.detach().to(dtype)
            source = logits_kV = functional.linear(hidden_kD, weight.detach().to(dtype), bias)
            if head.part is not None:
                source = logits_kV = head.part.gather(logits_kV)
            if gradient and head.post is not None:
                source.requires_grad_()
        else:
            source = hidden_kD.detach().requires_grad_(gradient)
            logits_kV = head.forward(source.unsqueeze(0)).squeeze(0)
        return source, logits_kV if head.post is None else head.post(logits_kV.unsqueeze(0)).squeeze(0)


class _Gradients:
    """Gradients by the hidden states and by the head's trained tensors, summed over chunks."""

    def __init__(
        self, hidden_KD: Tensor, head: OutputHead, trained: Sequence[Tensor], weights_K: Tensor | None
    ) -> None:
        self.hidden_KD = torch.empty_like(hidden_KD)
        fill = torch.zeros_like if not len(hidden_KD) or head.linear is None else torch.empty_like
        self.parameters = [fill(tensor) for tensor in trained]
        self._inputs_KD, self._head, self._trained, self._weights_K = hidden_KD, head, trained, weights_K

    def add(self, at: slice, source: Tensor, logits_kV: Tensor, gradient_kV: Tensor) -> None:
        """Add a chunk: ``gradient_kV`` is the gradient by ``logits_kV``, whose graph starts at ``source``."""
        if self._weights_K is not None and self._head.linear is None:
            gradient_kV = gradient_kV * self._weights_K[at, None]
        if logits_kV.requires_grad:
            inputs = [source, *(self._trained if self._head.linear is None else ())]
            gradient_kV, *found = torch.autograd.grad(
                logits_kV, inputs, gradient_kV.to(logits_kV.dtype), allow_unused=True
            )
            for total, gradient in zip(self.parameters, found, strict=False):
                total += 0 if gradient is None else gradient
        if self._head.linear is None:
            self.hidden_KD[at] = gradient_kV
        else:
            part = self._head.part
            self._through_linear(at, self._head.linear[0], gradient_kV if part is None else part.own(gradient_kV))

    def _through_linear(self, at: slice, weight: Tensor, gradient_kV: Tensor) -> None:
        gradient_kV, inputs_kD = gradient_kV.to(self.hidden_KD.dtype), self._inputs_KD[at]
        torch.mm(gradient_kV, weight.detach().to(gradient_kV.dtype), out=self.hidden_KD[at])
        if self._weights_K is not None:  # on the narrow side, not on rows as wide as the vocabulary
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
    """A sum whose gradients are computed with it; the backward only scales them."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[], LossResult], hidden_KD: Tensor, *trained: Tensor) -> Tensor:
        result = run()
        ctx.found = [result.hidden_KD, *result.parameters]
        return result.losses_K.sum()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        found, ctx.found = ctx.found, None
        if found is None:
            raise RuntimeError("the loss was differentiated before, and this is possible only once")
        return None, *(part.mul_(scale.to(part.dtype)) for part in found)
