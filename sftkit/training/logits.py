"""The function that a model applies to its logits after its head (softcap, scale), found by running its forward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sftkit.models.inspect import evaluating
from sftkit.training.intercept import Call, HeadIntercept, replaced_forward

PROBED = 4  # tokens of the trial
Post = Callable[[Tensor], Tensor]


class UnsuitedError(Exception):
    """The loss cannot be computed in place of the head's logits; the text follows the model's name."""


class Probe(NamedTuple):
    """A trial call of a model, whose head returned chosen logits.

    Attributes:
        chosen: the logits that the head returned; None if it was not called.
        returned: the logits among the model's outputs; None if there are none.
        decoder_output: the class of the decoder's output; None if the decoder is not called as a module.
    """

    chosen: Tensor | None
    returned: Tensor | None
    decoder_output: type | None


def probe(intercept: HeadIntercept, model: Any, logits: Callable[[Tensor], Tensor]) -> Probe:
    """Call the model, perhaps wrapped, on a few tokens; ``logits`` chooses those of the head from its input."""
    chosen: list[Tensor] = []
    decoder_outputs: list[type] = []
    weight = next(intercept.causal.get_input_embeddings().parameters())  # of an adapter's, not merged
    tokens = torch.arange(PROBED, device=weight.device)[None] % max(len(weight), 1)

    def answer(hidden: Tensor) -> Tensor:
        if not chosen:
            chosen.append(logits(hidden))
        return chosen[0]

    with ExitStack() as stack:
        if intercept.decoder is not None:
            hook = intercept.decoder.register_forward_hook(lambda _, __, output: decoder_outputs.append(type(output)))
            stack.callback(hook.remove)
        stack.enter_context(intercept.calling(Call(answer)))
        returned = model(input_ids=tokens, use_cache=False)["logits"]
    return Probe(next(iter(chosen), None), returned, next(iter(decoder_outputs), None))


def find_post(intercept: HeadIntercept, model: Any) -> tuple[int, Post | None]:
    """The size of the vocabulary, and the function that the model applies to its logits; None if there is none.

    Args:
        intercept: of the model, installed.
        model: the model, perhaps wrapped for several processes.

    Raises:
        UnsuitedError: if the model computes its logits elsewhere, or changes them in a way that cannot be repeated.
    """
    with evaluating(model):  # logits so large that a softcap shows
        found = probe(intercept, model, lambda hidden: torch.randn_like(intercept.original.head(hidden)) * 30)
    chosen, returned, decoder_output = found
    if chosen is None or returned is None or returned.shape != chosen.shape:
        raise UnsuitedError("computes its logits elsewhere than in its output embeddings")
    if torch.equal(returned.float(), chosen.float()):
        return chosen.shape[-1], None
    if decoder_output is None:
        prefix = intercept.causal.base_model_prefix
        raise UnsuitedError(f"changes its logits, and does not call its {prefix} as a module")
    post = replay(intercept, decoder_output)
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


def replay(intercept: HeadIntercept, decoder_output: type) -> Post:
    """The function that a model applies to its logits (``[1, k, V]``): its forward without the decoder and the head."""

    def post(logits: Tensor) -> Tensor:
        hidden = logits.new_zeros(1, 2, 1)  # two tokens: some models compute the logits of a single one elsewhere
        output = decoder_output(last_hidden_state=hidden)
        tokens = torch.zeros(1, 2, dtype=torch.long, device=logits.device)
        with replaced_forward(intercept.decoder, lambda *_, **__: output), intercept.calling(Call(lambda _: logits)):
            made: Tensor = intercept.original.model(input_ids=tokens, use_cache=False)["logits"]
        return made

    return post
