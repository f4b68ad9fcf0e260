# ruff: noqa: N803, N806 (suffixes are shapes)
"""Whether a model computes the documents of a batch as if each were alone: logits, and gradients by the embeddings.

Legend: B rows, T positions, S = B * T, N documents, K compared positions of a document, V vocabulary, D hidden size.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sftkit.models.inspect import base_model, evaluating
from sftkit.training.trials import Placed, Trial

EDGE = 4  # tokens at each end of a document whose logits are compared
#: Relative distance (root mean square) of logits that rounding explains, in epsilons of their type, or of float32 times
#: the square root of the width, over which products are summed.
EPSILONS = 8
GRADIENTS = 4  # times the error of the logits
LEAK = 1e-6  # of the largest gradient of the document: a masked score has none
NOT_OF_THE_MODEL = (
    *("labels", "loss_weights", "row_lengths", "row_shares"),
    *("trained_positions", "source_numbers", "token_values"),
)
QUANTIZED = 2**-7  # rounding of 8 bits


def difference_from_alone(model: Any, trials: Sequence[Trial], autocast: torch.dtype | None = None) -> str | None:
    """How documents of a batch differ from the same documents alone, or what the model raises; None if they are equal.

    Differences that rounding explains are none.

    Compares the logits at both ends of documents, and the gradients of a function of them by the input embeddings.
    Embeddings outside the document must have no gradient at all. Model, modes and random state are unchanged.

    Args:
        model: the model, as in training.
        trials: the batches.
        autocast: dtype of mixed precision in training; some attention kernels take nothing else.
    """
    with evaluating(model, autocast), _uncompiled(model):
        caller = _Caller(model)
        try:
            for trial in trials:
                if (found := _difference(caller, trial)) is not None:
                    return found + (f", in rows longer than {trial.limit}" if trial.limit else "")
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a model may raise anything for batches or modes that it does not support
            return " ".join(f"{type(error).__name__}: {error}".split())
    return None


def _difference(caller: _Caller, trial: Trial) -> str | None:
    """For one batch; without gradients if the device has too little memory for them."""
    if trial.targets:
        try:
            return _compare(caller, trial, True)
        except torch.OutOfMemoryError:
            tokens = tuple(trial.batch["input_ids"].shape)
            text = (
                "too little memory for the gradients of a batch of %d rows of %d tokens: only its logits are compared"
            )
            logging.getLogger("sftkit").warning(text, *tokens)
    return _compare(caller, trial, False)


def _compare(caller: _Caller, trial: Trial, gradients: bool) -> str | None:
    whole = caller.batch(trial, gradients)
    shared = caller.gradient_of(trial, whole) if gradients else None
    if shared is not None and (leak := _leak(trial, shared)) is not None:
        return leak
    for number, document in enumerate(trial.documents):
        differentiated = gradients and number in trial.targets
        alone = caller.alone(document, differentiated)
        apart = _apart(whole.logits[number], alone.logits[0])
        tolerance = caller.tolerance(document, alone, apart)
        place = document.start % trial.batch["input_ids"].shape[1]
        what = f"a document of {len(document.ids)} tokens at place {place} of its row"
        if not apart <= tolerance:
            return f"the logits of {what} differ by {100 * apart:.2g} % from those of the document alone"
        if differentiated and shared is not None:
            own = caller.gradient_of(Trial({}, [document], [0]), alone)
            apart = _apart(shared[document.start : document.start + len(document.ids)], own, centered=False)
            if not apart <= GRADIENTS * tolerance:
                return f"the gradients of {what} differ by {100 * apart:.2g} % from those of the document alone"
    return None


def _leak(trial: Trial, gradient_SD: Tensor) -> str | None:
    """What tokens outside the differentiated documents say about them."""
    size_S = gradient_SD.abs().amax(1)
    inside_S = torch.zeros_like(size_S, dtype=torch.bool)
    for document in (trial.documents[number] for number in trial.targets):
        inside_S[document.start : document.start + len(document.ids)] = True
    outside, inside = (float(size_S[at].amax()) if at.any() else 0.0 for at in (~inside_S, inside_S))
    return None if outside <= LEAK * inside else "a document has a gradient by the tokens of others"


def _apart(found: Tensor, expected: Tensor, centered: bool = True) -> float:
    """The relative distance of two tensors; of logits without their mean, which changes no probability."""
    found, expected = found.detach().float(), expected.detach().float().to(found.device)
    if centered:
        found, expected = (part - part.mean(-1, keepdim=True) for part in (found, expected))
    distance, size = float((found - expected).norm()), float(expected.norm())
    return distance / size if size else distance


class _Result(NamedTuple):
    """The logits of the compared positions of each document (``[K, V]``), and the embeddings (``[B, T, D]``)."""

    logits: list[Tensor]
    embedded: Tensor | None


class _Caller:
    """Calls a model on batches and on documents alone."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._embedding = model.get_input_embeddings()
        self._device = next(self._embedding.parameters()).device
        self._keeps = "logits_to_keep" in inspect.signature(base_model(model).forward).parameters
        self._tolerance: float | None = None
        self._measured = False

    def batch(self, trial: Trial, gradients: bool) -> _Result:
        """The collator's batch."""
        columns = trial.batch["input_ids"].shape[1]
        inputs = {name: value for name, value in trial.batch.items() if name not in NOT_OF_THE_MODEL}
        inputs = {name: value.to(self._device) if torch.is_tensor(value) else value for name, value in inputs.items()}
        places = [[document.start + place for place in _ends(document)] for document in trial.documents]
        return self._call(inputs, [[divmod(place, columns) for place in each] for each in places], gradients)

    def alone(self, document: Placed, gradients: bool = False, noise: float = 0.0) -> _Result:
        """One document as a row; its embeddings are moved by ``noise`` times their values."""
        inputs = {"input_ids": torch.tensor([document.ids], device=self._device)}
        return self._call(inputs, [[(0, place) for place in _ends(document)]], gradients, noise)

    def _call(
        self, inputs: dict[str, Any], places: list[list[tuple[int, int]]], gradients: bool, noise: float = 0.0
    ) -> _Result:
        kept = sorted({column for each in places for _, column in each})
        column_of = {column: n for n, column in enumerate(kept)}
        if self._keeps:
            inputs = {**inputs, "logits_to_keep": torch.tensor(kept, device=self._device)}
        with torch.set_grad_enabled(gradients), self._embedded(gradients, noise) as held:
            logits_BTV = self._model(**inputs, use_cache=False).logits
            if not self._keeps:
                column_of = {column: column for column in kept}
            found = [torch.stack([logits_BTV[row, column_of[column]] for row, column in each]) for each in places]
        return _Result(found, held[0] if held else None)

    @contextmanager
    def _embedded(self, gradients: bool, noise: float) -> Iterator[list[Tensor]]:
        """Inside, the embeddings are the start of the graph; yields a list that the first ones are added to."""
        held: list[Tensor] = []

        def changed(module: Any, args: Any, output: Tensor) -> Tensor:
            signs = torch.ones_like(output)
            signs[..., ::2] = -1
            made = (output * (1 + noise * signs)).detach().requires_grad_(gradients)
            held.append(made)
            return made.clone()  # which the model may change in place

        handle = self._embedding.register_forward_hook(changed) if gradients or noise else None
        try:
            yield held
        finally:
            if handle is not None:
                handle.remove()

    def gradient_of(self, trial: Trial, result: _Result) -> Tensor:
        """The gradient of a function of the targets' logits by the embeddings (``[S, D]``)."""
        if result.embedded is None:
            raise TypeError("the model does not call its input embeddings")
        total: Any = 0
        with torch.enable_grad():
            for number in trial.targets:
                logits_KV = result.logits[number].float()
                # Any fixed function will do, if it is the same for the document alone.
                generator = torch.Generator().manual_seed(len(trial.documents[number].ids))
                weights_KV = torch.randn(logits_KV.shape, generator=generator).to(logits_KV.device)
                total = total + (torch.log_softmax(logits_KV, -1) * weights_KV).sum()
        (gradient,) = torch.autograd.grad(total, [result.embedded])
        return gradient.flatten(0, 1).float()

    def tolerance(self, document: Placed, alone: _Result, apart: float) -> float:
        """The distance that rounding explains.

        In half precision, or where a document is further apart than usual, it is measured: the document is run with
        embeddings that are moved by about as much. A model that applies its layers many times adds up its rounding.
        """
        if self._tolerance is None or (not self._measured and not apart <= self._tolerance):
            weight = next(self._embedding.parameters())
            kinds = [kind for kind in (alone.logits[0].dtype, weight.dtype) if kind.is_floating_point]
            single = torch.finfo(torch.float32).eps
            epsilon = max(torch.finfo(kind).eps for kind in kinds)
            if self._device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
                epsilon = max(epsilon, 2**-10)
            if getattr(base_model(self._model), "hf_quantizer", None) is not None:
                epsilon = max(epsilon, QUANTIZED)
            self._tolerance = EPSILONS * max(epsilon, single * weight.shape[-1] ** 0.5)
            self._measured = epsilon > single or not apart <= self._tolerance
            if self._measured:
                moved = self.alone(document, noise=epsilon)
                self._tolerance = max(self._tolerance, EPSILONS * _apart(moved.logits[0], alone.logits[0]))
        return self._tolerance


def _ends(document: Placed) -> list[int]:
    """The first and the last places of a document."""
    length = len(document.ids)
    return sorted({*range(min(EDGE, length)), *range(max(0, length - EDGE), length)})


def _uncompiled(model: Any) -> Any:
    """Compiled parts run as they are written, rather than being compiled for a few batches; flex attention as usual."""
    flex = "flex" in str(getattr(base_model(model).config, "_attn_implementation", ""))
    set_stance: Callable[[str], Any] = torch.compiler.set_stance
    return nullcontext() if flex else set_stance("force_eager")
