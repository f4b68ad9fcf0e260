"""The function that a model applies to its logits after its head (softcap, scale), found by running its forward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from sftkit.models.inspect import evaluating
from sftkit.training.intercept import Answer, HeadIntercept, replaced_forward

PROBED = 4  # tokens of the trial


class UnsuitedError(Exception):
    """The loss cannot be computed in place of the head's logits; its text follows the model's name."""


class Probe:
    """A trial call of a model that returns chosen logits from the head.

    Args:
        intercept: of the model, installed.
        model: the model, perhaps wrapped for several processes.
        logits: maps the head's input to the logits that it returns.

    Attributes:
        chosen: the logits that the head returned; None if it was not called.
        returned: the logits among the model's outputs; None if there are none.
        decoder_output: the class of the decoder's output; None if the decoder is not called as a module.
    """

    def __init__(self, intercept: HeadIntercept, model: Any, logits: Callable[[Tensor], Tensor]) -> None:
        self.chosen: Tensor | None = None
        self.decoder_output: type | None = None
        weight = intercept.causal.get_input_embeddings().weight
        tokens = torch.arange(PROBED, device=weight.device)[None] % max(len(weight), 1)

        def answer(hidden: Tensor) -> Tensor:
            if self.chosen is None:
                self.chosen = logits(hidden)
            return self.chosen

        def note(module: Any, inputs: Any, output: Any) -> None:
            self.decoder_output = type(output)

        with ExitStack() as stack:
            if intercept.decoder is not None:
                stack.callback(intercept.decoder.register_forward_hook(note).remove)
            stack.enter_context(intercept.calling(Answer(answer)))
            self.returned: Tensor | None = model(input_ids=tokens, use_cache=False)["logits"]


def find_post(intercept: HeadIntercept, model: Any) -> tuple[int, Callable[[Tensor], Tensor] | None]:
    """The size of the vocabulary, and the function that the model applies to its logits; None if there is none.

    Args:
        intercept: of the model, installed.
        model: the model, perhaps wrapped for several processes.

    Raises:
        UnsuitedError: if the model computes its logits elsewhere, or changes them in a way that cannot be repeated.
    """

    def logits(hidden: Tensor) -> Tensor:
        return torch.randn_like(intercept.original.head(hidden)) * 30  # large enough for a softcap to show

    with evaluating(model):
        probe = Probe(intercept, model, logits)
    chosen, returned = probe.chosen, probe.returned
    if chosen is None or returned is None or returned.shape != chosen.shape:
        raise UnsuitedError("computes its logits elsewhere than in its output embeddings")
    if torch.equal(returned.float(), chosen.float()):
        return chosen.shape[-1], None
    if probe.decoder_output is None:
        prefix = intercept.causal.base_model_prefix
        raise UnsuitedError(f"changes its logits, and does not call its {prefix} as a module")
    post = Replay(intercept, probe.decoder_output)
    try:
        with torch.no_grad():
            again = post(chosen)
        rounding = 4 * torch.finfo(again.dtype).eps
        repeated = torch.allclose(again.float(), returned.float(), rtol=rounding, atol=rounding)
    except Exception:  # a forward may raise anything on such inputs
        repeated = False
    if not repeated:
        raise UnsuitedError("changes its logits in a way that cannot be repeated")
    return chosen.shape[-1], post


class Replay:
    """The function that a model applies to its logits: its forward without the decoder and the head.

    Args:
        intercept: of the model.
        decoder_output: the class of its decoder's output.
    """

    def __init__(self, intercept: HeadIntercept, decoder_output: type) -> None:
        self._intercept, self._decoder_output = intercept, decoder_output

    def __call__(self, logits: Tensor) -> Tensor:
        """The logits (``[1, k, V]``) as the model returns them."""
        hidden = logits.new_zeros(1, 2, 1)  # two tokens: some models compute the logits of a single one elsewhere
        tokens = torch.zeros(1, 2, dtype=torch.long, device=logits.device)
        output = self._decoder_output(last_hidden_state=hidden)
        with (
            replaced_forward(self._intercept.decoder, lambda *_, **__: output),
            self._intercept.calling(Answer(lambda _: logits)),
        ):
            made: Tensor = self._intercept.original.model(input_ids=tokens, use_cache=False)["logits"]
        return made
