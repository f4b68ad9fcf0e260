# ruff: noqa: N803, N806, N815 (suffixes are shapes)
"""The loss of a student: its divergence from the teacher and its cross-entropy, a chunk of trained tokens at a time.

Legend: K trained tokens of a batch, k of a chunk, V logits of the student, N tokens of the tokenizer, T top ones.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sftkit.api import (
    ConfigError,
    FrozenModel,
    FrozenStates,
    HeadLoss,
    Problem,
    Targets,
    TokenLosses,
    TokenStore,
    UnsuitedBatchError,
    at_target,
    difference_from_alone,
    document_trials,
    examples_apart,
    minus_target,
)
from sftkit_plugins.distill.divergence import FLOOR, divergence, log_probabilities

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """How a loss is put together.

    Attributes:
        kl: name of the divergence.
        beta: of ``jsd``.
        temperature: of both distributions.
        alpha: share of the divergence; the rest is cross-entropy.
        tokens: of the tokenizer: both distributions are over these, without the padding of a head.
    """

    kl: str
    beta: float
    temperature: float
    alpha: float
    tokens: int


@dataclass(frozen=True)
class DistilledLoss(HeadLoss):
    """The loss of a batch: alpha temperature² divergence + (1 - alpha) cross-entropy, of each token.

    Source: Hinton et al., 2015, Distilling the Knowledge in a Neural Network (arXiv 1503.02531), section 2, for the
    temperature and its square, with which the gradients of both parts keep their sizes.
    """

    mixture: Mixture

    @abstractmethod
    def distance(self, at: slice, logits_kN: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """The divergence of each token of a chunk, and its gradient by the student's logits."""

    def chunk(self, at: slice, logits_KV: Tensor, targets_K: Tensor, gradient: bool) -> TokenLosses:
        """The loss of each token of a chunk, with the measures ``divergence`` and ``nll``."""
        of, tokens = self.mixture, min(self.mixture.tokens, logits_KV.shape[1])
        distance_K, gradient_KN = self.distance(at, logits_KV[:, :tokens], gradient)
        total_K = torch.logsumexp(logits_KV, 1)
        nll_K = total_K - at_target(logits_KV, targets_K)
        share = of.alpha * of.temperature**2
        losses_K = share * distance_K + (1 - of.alpha) * nll_K
        measures = {"divergence": distance_K, "nll": nll_K}
        if not gradient or gradient_KN is None:
            return TokenLosses(losses_K, None, measures)
        if of.alpha < 1:
            gradient_KV = minus_target(logits_KV.sub_(total_K[:, None]).exp_(), targets_K).mul_(1 - of.alpha)
            gradient_KV[:, :tokens].add_(gradient_KN, alpha=share)
        elif tokens == logits_KV.shape[1]:
            gradient_KV = gradient_KN.mul_(share)
        else:
            gradient_KV = torch.zeros_like(logits_KV)
            gradient_KV[:, :tokens] = gradient_KN.mul_(share)
        return TokenLosses(losses_K, gradient_KV, measures)


@dataclass(frozen=True)
class FromStates(DistilledLoss):
    """The loss of a batch whose teacher has run: its logits are computed beside the student's.

    Attributes:
        states: of the teacher.
    """

    states: FrozenStates

    def distance(self, at: slice, logits_kN: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """From the whole distribution of the teacher."""
        of = self.mixture
        student_kN = log_probabilities(logits_kN, of.temperature)
        teacher_kN = log_probabilities(self.states.logits(at).to(logits_kN.device), of.temperature)
        value_k, by_logp_kN = divergence(of.kl, of.beta)(student_kN, teacher_kN)
        if not gradient:
            return value_k, None
        sums_k1 = by_logp_kN.sum(1, keepdim=True)
        return value_k, by_logp_kN.sub_(student_kN.exp_().mul_(sums_k1)).div_(of.temperature)


@dataclass(frozen=True)
class FromTop(DistilledLoss):
    """The loss of a batch with the most likely tokens of the teacher; all others count as one alternative.

    Attributes:
        ids_KT: these tokens.
        logp_KT: their log-probabilities, at the temperature.
        rest_K: the log-probability of all others.
    """

    ids_KT: Tensor
    logp_KT: Tensor
    rest_K: Tensor

    def distance(self, at: slice, logits_kN: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """From the top tokens and the rest, of which the student's distribution has as many alternatives."""
        of = self.mixture
        scaled_kN, ids_kT = logits_kN / of.temperature, self.ids_KT[at].long()
        teacher_kB = torch.cat([self.logp_KT[at].float(), self.rest_K[at].float()[:, None]], 1).clamp_(min=FLOOR)
        teacher_kB = log_probabilities(teacher_kB, 1.0)  # what rounding has added or lost is divided among all
        total_k1 = torch.logsumexp(scaled_kN, 1, keepdim=True)
        top_kT = scaled_kN.gather(1, ids_kT) - total_k1
        others_kN = scaled_kN.scatter(1, ids_kT, -torch.inf)
        rest_k1 = torch.logsumexp(others_kN, 1, keepdim=True).clamp_(min=FLOOR)
        student_kB = torch.cat([top_kT, rest_k1 - total_k1], 1).clamp_(min=FLOOR)
        value_k, by_logp_kB = divergence(of.kl, of.beta)(student_kB, teacher_kB)
        if not gradient:
            return value_k, None
        gradient_kN = scaled_kN.sub_(total_k1).exp_().mul_(-by_logp_kB.sum(1, keepdim=True))
        gradient_kN += others_kN.sub_(rest_k1).exp_().mul_(by_logp_kB[:, -1:])
        gradient_kN.scatter_add_(1, ids_kT, by_logp_kB[:, :-1])
        return value_k, gradient_kN.div_(of.temperature)


@dataclass(frozen=True)
class OnlineLoss(HeadLoss):
    """Runs a teacher on each batch.

    Attributes:
        mixture: how the loss is put together.
        teacher: the teacher.
        batch_size: examples of a batch, for the proof.
        max_length: tokens of a row, where the rows are not known.
    """

    mixture: Mixture
    teacher: FrozenModel
    batch_size: int
    max_length: int

    @property
    def models(self) -> Sequence[Any]:
        """The teacher."""
        return (self.teacher.model,)

    @contextmanager
    def held(self, model: Any, rows: Any, collator: Any) -> Iterator[None]:
        """Proves that the teacher keeps the documents of a row apart, if examples have several.

        Raises:
            ConfigError: if it does not.
        """
        teacher = self.teacher.model

        def given(examples: list[dict[str, Any]]) -> dict[str, Any]:
            return examples_apart(collator(examples))

        try:
            trials = document_trials(teacher.config, rows, given, self.batch_size, self.max_length)
        except UnsuitedBatchError as error:
            fix = "use a collator that keeps the rows as they are"
            raise ConfigError(Problem(str(error), "plugin distill", fix)) from error
        several = [trial for trial in trials if "position_ids" in trial.batch]
        if several and (leak := difference_from_alone(teacher, several)) is not None:
            what = f"the teacher (model type {teacher.config.model_type}) does not keep the documents of a row apart"
            fix = "drop packing, or store its values with `sftkit distill-rows`"
            raise ConfigError(Problem(f"{what}: {leak}", "plugin distill, option teacher", fix))
        yield

    def of_batch(self, inputs: Mapping[str, Any], targets: Targets, values: Mapping[str, Tensor]) -> HeadLoss:
        """The loss of a batch, on which the teacher's body runs."""
        return FromStates(self.mixture, self.teacher(inputs, targets))


@dataclass(frozen=True)
class StoredLoss(HeadLoss):
    """Takes what a teacher has computed before from a store.

    Attributes:
        mixture: how the loss is put together.
        store: where they are.
    """

    mixture: Mixture
    store: TokenStore

    @property
    def token_values(self) -> TokenStore:
        """The store."""
        return self.store

    def of_batch(self, inputs: Mapping[str, Any], targets: Targets, values: Mapping[str, Tensor]) -> HeadLoss:
        """The loss of a batch, which comes with the teacher's values."""
        return FromTop(self.mixture, values["ids"], values["logp"], values["rest"])
