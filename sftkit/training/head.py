# ruff: noqa: N803, N806 (suffixes are shapes)
"""The head of a causal language model in training: it computes the loss of the trained positions instead of logits.

Legend: B rows, T positions, N all positions, K trained positions, V vocabulary, D hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sftkit.training.auxiliary import auxiliary_coefficient
from sftkit.training.intercept import Call, HeadIntercept
from sftkit.training.logits import Post, UnsuitedError, find_post
from sftkit.training.loss import HeadLoss, LossResult, OutputHead, summed_loss
from sftkit.training.targets import Targets
from sftkit.training.vocabulary import VocabularyPart

logger = logging.getLogger("sftkit")


class LossHead:
    """Lets a causal language model return the sum of the losses of its trained tokens, and no logits.

    While a loss is requested, the module of the output embeddings receives the hidden states as usual, and computes the
    loss of the trained positions instead of logits. This happens inside its own call and that of the model, so that
    whatever gathers, shards or casts weights around them still works. The function that the model applies to its logits
    (softcap, scale) is found once, by running its forward on chosen logits, and applied to every chunk. A model for
    which this does not work computes the logits of every position, and a warning is logged.

    Args:
        model: the model, bare or with adapters.
        loss: the loss.

    Attributes:
        full_logits: whether the logits of every position are computed; known after the first request.
        auxiliary: the factor of the model's ``aux_loss``, None if it has none; known after the first request.
    """

    def __init__(self, model: Any, loss: HeadLoss) -> None:
        self.loss = loss
        self.full_logits = False
        self.auxiliary: float | None = None
        self._intercept = HeadIntercept(model)
        self._vocabulary = 0  # not known before the first request
        self._post: Post | None = None

    @contextmanager
    def installed(self) -> Iterator[LossHead]:
        """The model can be asked for losses inside; after it, the model is unchanged. Contexts can be nested."""
        with self._intercept.installed():
            yield self

    def ask(
        self,
        model: Any,
        inputs: dict[str, Any],
        targets: Targets,
        logits: bool = False,
        values: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, LossResult, Any]:
        """The sum of the losses (a scalar), the losses of the tokens, and the model's outputs.

        Args:
            model: the model, perhaps wrapped for several processes.
            inputs: arguments of its forward, without labels.
            targets: the trained tokens.
            logits: whether the outputs contain the logits of every position, too.
            values: of the trained tokens, for the loss.
        """
        if not self._vocabulary and not self.full_logits:
            self._inspect(model)
        loss = self.loss.of_batch(inputs, targets, values or {})
        if self.full_logits or logits:
            outputs = model(**inputs)
            logits_ND = outputs["logits"][:, -targets.shape[1] :].flatten(0, 1)
            identity = OutputHead(logits_ND.shape[-1], lambda logits: logits)
            return *self._losses(loss, logits_ND, identity, targets), outputs
        assert self._intercept.module is not None
        call = _LossCall(self, loss, targets)
        hook = self._intercept.module.register_forward_hook(call.leave_module)
        try:
            with self._intercept.calling(call):
                outputs = model(**inputs)
        finally:
            hook.remove()
        assert call.result is not None
        return outputs["loss"], call.result, outputs

    def _losses(
        self, loss: HeadLoss, inputs_ND: Tensor, head: OutputHead, targets: Targets
    ) -> tuple[Tensor, LossResult]:
        device = inputs_ND.device
        inputs_KD = inputs_ND.index_select(0, targets.positions_K.to(device))
        weights_K = None if targets.weights_K is None else targets.weights_K.to(device)
        return summed_loss(loss, inputs_KD, head, targets.tokens_K.to(device), weights_K)

    def _output_head(self) -> OutputHead:
        module: Any = self._intercept.module
        forward = self._intercept.original.head
        plain = type(module) is nn.Linear and getattr(forward, "__func__", None) is nn.Linear.forward
        if plain and self._is_whole(module.weight):
            return OutputHead(self._vocabulary, forward, module.weight, module.bias, self._post)
        return OutputHead(self._vocabulary, forward, post=self._post, part=VocabularyPart.of(module))

    def _is_whole(self, weight: Tensor) -> bool:
        """Whether it can be multiplied directly; for a sharded or otherwise wrapped weight the module is called."""
        return type(weight) in (Tensor, nn.Parameter)

    def _inspect(self, model: Any) -> None:
        """Find out, on a few tokens, what the model does with its logits, and what it adds to its loss."""
        self.auxiliary = self._find_auxiliary(model)
        try:
            if self._intercept.module is None:
                raise UnsuitedError("has no output embeddings")
            self._vocabulary, self._post = self._find_post(model)
        except UnsuitedError as error:
            self.full_logits = True
            logger.warning(
                "the logits of every position are computed, not only those of trained positions: model type %s %s",
                self._intercept.causal.config.model_type,
                error,
            )

    def _find_auxiliary(self, model: Any) -> float | None:
        return auxiliary_coefficient(self._intercept.causal, model)

    def _find_post(self, model: Any) -> tuple[int, Post | None]:
        return find_post(self._intercept, model)


class _LossCall(Call):
    """A call of a model that returns a loss in place of logits."""

    def __init__(self, head: LossHead, loss: HeadLoss, targets: Targets) -> None:
        self._head, self._loss, self._targets = head, loss, targets
        self._total: Tensor | None = None
        self.result: LossResult | None = None

    def answer(self, hidden: Tensor) -> Tensor:
        """The loss, in place of logits."""
        hidden_ND = hidden[:, -self._targets.shape[1] :].flatten(0, 1)
        head = self._head._output_head()
        self._total, self.result = self._head._losses(self._loss, hidden_ND, head, self._targets)
        return self._total.expand(1, 1, head.vocabulary).clone()  # has the shape of logits; a model may change it

    def leave_module(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """A forward hook of the head: hooks that gather weights for the backward depend on the module's output."""
        if self._total is not None:
            self._total = output.flatten()[0].clone()

    def finish(self, outputs: Any) -> Any:
        """The outputs with the loss, where wrappers of the model look for tensors to differentiate."""
        if self._total is not None:
            outputs["loss"], outputs["logits"] = self._total, None
        return outputs
