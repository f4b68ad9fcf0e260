# ruff: noqa: N803, N806, N815 (suffixes are shapes)
"""The model's head while it is trained: it computes the loss, of trained positions alone, where it made logits.

Legend: B rows, T positions, K trained positions, V vocabulary, D hidden size.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sftkit.data.columns import IGNORE_INDEX
from sftkit.models.inspect import base_model, evaluating
from sftkit.training.loss import HeadLoss, LossResult, OutputHead, summed_loss

logger = logging.getLogger("sftkit")

PROBED = 4  # tokens on which it is found out what a model does to its logits


@dataclass(frozen=True)
class Targets:
    """What a batch trains.

    Attributes:
        positions_K: where, as numbers of the flat batch (row times T plus column): the last position that sees nothing
            of its target.
        tokens_K: token ids to predict there.
        weights_K: of their losses (float32); None where all are 1.
        shape: B and T.
    """

    positions_K: Tensor
    tokens_K: Tensor
    weights_K: Tensor | None
    shape: tuple[int, int]

    @classmethod
    def of(cls, labels_BT: Tensor, weights_BT: Tensor | None = None, positions_K: Tensor | None = None) -> Targets:
        """From unshifted labels; positions that are known already cost the device no wait."""
        positions_K = trained_positions(labels_BT) if positions_K is None else positions_K
        behind_K = positions_K + 1
        weights_K = None if weights_BT is None else weights_BT.flatten()[behind_K].float()
        rows, columns = labels_BT.shape
        return cls(positions_K, labels_BT.flatten()[behind_K], weights_K, (rows, columns))

    @property
    def weight(self) -> Tensor:
        """What the losses count together (a scalar): the number of targets where all have a weight of 1."""
        if self.weights_K is not None:
            return self.weights_K.sum()
        return torch.tensor(float(len(self.tokens_K)), device=self.tokens_K.device)


def trained_positions(labels_BT: Tensor) -> Tensor:
    """The positions (int64, ``[K]``) whose next label is trained, as numbers of the flat batch."""
    trained_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
    trained_BT[:, :-1] = labels_BT[:, 1:] != IGNORE_INDEX
    return trained_BT.flatten().nonzero().squeeze(1)


class LossHead:
    """Lets a causal language model return the sum of its trained tokens' losses, and no logits.

    While a loss is asked for, the module of the output embeddings gets the hidden states as ever, and computes the
    loss of the trained positions in place of their logits. This happens inside its own call and the model's, so that
    whatever gathers, shards or casts weights around them does its work. What the model does to its logits afterwards
    (softcap, scale) is found by running its forward around given logits, and done to every chunk. A model in which
    this cannot be shown to work makes its logits in full, and that is told.

    Args:
        model: the model, bare or with adapters.
        loss: the loss.
    """

    def __init__(self, model: Any, loss: HeadLoss) -> None:
        self.loss = loss
        self._causal = base_model(model)
        self._module: Any = self._causal.get_output_embeddings()
        prefix = self._causal.base_model_prefix
        self._base: Any = getattr(self._causal, prefix, None) or getattr(self._causal, "model", None)
        self._plain = self._module is None
        self._post: Callable[[Tensor], Tensor] | None = None
        self._known = False
        self._held = 0
        # What the two replaced forwards do: None, or a function of the head's input that gives its output.
        self._answer: Callable[[Tensor], Tensor] | None = None
        self._told: tuple[Tensor, LossResult] | None = None

    @contextmanager
    def installed(self) -> Iterator[LossHead]:
        """The model can be asked for losses inside, and is outside as it was; may be held by several at once."""
        with ExitStack() as stack:
            if self._module is not None and not self._held:
                self._forward = stack.enter_context(_replaced(self._causal, self._causal_forward))
                self._make_logits = stack.enter_context(_replaced(self._module, self._head_forward))
            self._held += 1
            stack.callback(self._let_go)
            yield self

    def _let_go(self) -> None:
        self._held -= 1

    def ask(
        self, model: Any, inputs: dict[str, Any], targets: Targets, logits: bool = False
    ) -> tuple[Tensor, LossResult, Any]:
        """The sum of the losses (a scalar), what else is known of the tokens, and the model's outputs.

        Args:
            model: the model, perhaps wrapped for several processes.
            inputs: of its forward, without labels.
            targets: what is trained.
            logits: whether the outputs hold the logits of all positions, too.
        """
        if not self._known:
            self._look_at(model)
        if self._plain or logits:
            outputs = model(**inputs)
            logits_ND = outputs["logits"][:, -targets.shape[1] :].flatten(0, 1)
            as_they_are = OutputHead(logits_ND.shape[-1], lambda logits: logits)
            return *self._losses(logits_ND, as_they_are, targets), outputs

        def answer(hidden: Tensor) -> Tensor:
            hidden_ND = hidden[:, -targets.shape[1] :].flatten(0, 1)
            self._told = self._losses(hidden_ND, self._head(hidden), targets)
            return self._told[0].expand(1, 1, self._vocabulary).clone()  # in place of logits, which a model may change

        def take(module: nn.Module, given: Any, output: Tensor) -> None:
            # What gathers weights for the backward hangs on the module's output: the loss goes through it.
            if self._told is not None:
                self._told = (output.flatten()[0].clone(), self._told[1])

        hook = self._module.register_forward_hook(take)
        try:
            with self._answering(answer):
                outputs = model(**inputs)
            assert self._told is not None
            return outputs["loss"], self._told[1], outputs
        finally:
            hook.remove()
            self._told = None

    def _losses(self, inputs_ND: Tensor, head: OutputHead, targets: Targets) -> tuple[Tensor, LossResult]:
        device = inputs_ND.device
        inputs_KD = inputs_ND.index_select(0, targets.positions_K.to(device))
        weights_K = None if targets.weights_K is None else targets.weights_K.to(device)
        return summed_loss(self.loss, inputs_KD, head, targets.tokens_K.to(device), weights_K)

    def _head(self, hidden: Tensor) -> OutputHead:
        module = self._module
        plain = type(module) is nn.Linear and getattr(self._make_logits, "__func__", None) is nn.Linear.forward
        if plain and self._is_whole(module.weight):
            return OutputHead(self._vocabulary, self._make_logits, module.weight, module.bias, self._post)
        return OutputHead(self._vocabulary, self._make_logits, post=self._post)

    def _is_whole(self, weight: Tensor) -> bool:
        """Whether products can be made with it as it is: of a sharded or otherwise wrapped one the module knows how."""
        return type(weight) in (Tensor, nn.Parameter)

    @torch.compiler.disable
    def _head_forward(self, hidden: Tensor, *args: Any, **options: Any) -> Tensor:
        if self._answer is None:
            return self._make_logits(hidden, *args, **options)
        return self._answer(hidden)

    def _causal_forward(self, *args: Any, **options: Any) -> Any:
        outputs = self._forward(*args, **options)
        if self._told is not None:  # among the outputs, where wrappers of the model look for what is differentiated
            outputs["loss"], outputs["logits"] = self._told[0], None
        return outputs

    @contextmanager
    def _answering(self, answer: Callable[[Tensor], Tensor]) -> Iterator[None]:
        before, self._answer = self._answer, answer
        try:
            yield
        finally:
            self._answer = before

    def _look_at(self, model: Any) -> None:
        """Find out what the model does to its logits: once, on a few tokens."""
        try:
            if self._plain:
                raise _UnsuitedError("names no output embeddings")
            self._find_post(model)
        except _UnsuitedError as error:
            self._plain = True
            logger.warning(
                "the logits of every position are computed, not only of trained ones: model type %s %s",
                self._causal.config.model_type,
                error,
            )
        self._known = True

    def _find_post(self, model: Any) -> None:
        seen: list[Tensor] = []

        def answer(hidden: Tensor) -> Tensor:
            if not seen:
                seen.append(self._make_logits(hidden))
                seen.append(torch.randn_like(seen[0]) * 30)  # far enough for a cap to show
            return seen[1]

        weight = self._causal.get_input_embeddings().weight
        tokens = torch.arange(PROBED, device=weight.device)[None] % max(len(weight), 1)
        base_outputs: list[Any] = []
        with ExitStack() as stack:
            if self._base is not None:
                hook = self._base.register_forward_hook(lambda _, __, output: base_outputs.append(output))
                stack.callback(hook.remove)
            stack.enter_context(evaluating(model))
            stack.enter_context(self._answering(answer))
            made = model(input_ids=tokens, use_cache=False)["logits"]
        if not seen or made is None or made.shape != seen[1].shape:
            raise _UnsuitedError("makes its logits elsewhere than in its output embeddings")
        self._vocabulary = made.shape[-1]
        if torch.equal(made.float(), seen[1].float()):
            return
        if not base_outputs:
            raise _UnsuitedError(
                f"changes its logits, and its {self._causal.base_model_prefix} is not called as a module"
            )
        self._base_class = type(base_outputs[0])
        try:
            with torch.no_grad():
                again = self._replay(seen[1])
            rounding = 4 * torch.finfo(again.dtype).eps
            repeated = torch.allclose(again.float(), made.float(), rtol=rounding, atol=rounding)
        except Exception:  # a forward that is not made for it may raise anything
            repeated = False
        if not repeated:
            raise _UnsuitedError("changes its logits in a way that cannot be repeated")
        self._post = self._replay

    def _replay(self, logits: Tensor) -> Tensor:
        """What the model does to logits, done to these: its forward, with what comes before and the head left out."""
        hidden = logits.new_zeros(1, 2, 1)  # more than one token: some models make the logits of just one elsewhere
        with (
            _replaced(self._base, lambda *_, **__: self._base_class(last_hidden_state=hidden)),
            self._answering(lambda _: logits),
        ):
            tokens = torch.zeros(1, 2, dtype=torch.long, device=logits.device)
            made: Tensor = self._forward(input_ids=tokens, use_cache=False)["logits"]
        return made


class _UnsuitedError(Exception):
    """The loss cannot be computed where the model makes its logits; says why, behind the model's name."""


@contextmanager
def _replaced(module: Any, forward: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """The module with another forward, of the same signature; gives the one before."""
    own, before = "forward" in vars(module), module.forward
    # A plain function: accelerate takes a bound method apart, and binds it to the model.
    module.forward = functools.wraps(before)(lambda *arguments, **options: forward(*arguments, **options))
    try:
        yield before
    finally:
        if own:
            module.forward = before
        else:
            del module.forward
            vars(module).pop("_original_forward", None)  # of accelerate, whose wrapper has gone with ours
