"""The attention of plugin flash_attn in half precision, beside eager attention.

The reference is eager attention in float32 with the same weights, one document at a time. Eager attention in bfloat16
misses it by rounding alone. A fast kernel rounds at other places, so its error must not be much larger than that: at
most `LOGITS` times as large for logits, `GRADIENTS` times for gradients. These are the factors that FlashAttention's
own tests use. A document that sees another one is off by far more, which is tested too.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import pytest
import torch

from sftkit_plugins.flash_attn import FlashAttn
from sftkit_plugins.flash_attn.collate import PaddingFreeCollator
from sftkit_plugins.flash_attn.documents import from_positions
from sftkit_plugins.flash_attn.kernels import by_kernel, one_by_one
from sftkit_plugins.flash_attn.model import attending
from sftkit_plugins.packing import Packing
from sftkit_plugins.pad import PadCollator

pytestmark = pytest.mark.gpu

LOGITS, GRADIENTS = 2.0, 3.0
LENGTHS = (9, 130, 33, 107, 1, 64)  # the first three, and the last three, fill a row of 172 tokens
ROW = 172
MODELS: dict[str, dict[str, Any]] = {"llama": {}, "qwen3": {}, "gpt2": {}, "mistral": {"sliding_window": 48}}


class Outcome(NamedTuple):
    """Logits ``[S, V]`` of all documents, one behind the other, and gradients by name; none where not asked for."""

    logits: torch.Tensor
    gradients: dict[str, torch.Tensor]


@functools.cache
def documents() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 320, (length,), generator=generator).tolist() for length in LENGTHS]


def padding_free() -> dict[str, Any]:
    return PaddingFreeCollator()([{"input_ids": ids, "labels": ids} for ids in documents()])


def packed() -> dict[str, Any]:
    ids = torch.tensor([token for document in documents() for token in document]).view(-1, ROW)
    places = torch.cat([torch.arange(length) for length in LENGTHS]).view(-1, ROW)
    return {"input_ids": ids, "position_ids": places}


def padded() -> dict[str, Any]:
    return PadCollator(2)([{"input_ids": ids, "labels": ids} for ids in documents()])


FORMS = {"padding-free": padding_free, "packed": packed, "padded": padded}
CASES = [(name, "varlen", form) for name in MODELS for form in FORMS]
# its kernel takes neither a padding mask nor a sliding window
CASES += [(name, "sdpa_flash", form) for name in ("llama", "qwen3", "gpt2") for form in ("padding-free", "packed")]
# each of these is compiled anew; transformers has no flex for GPT-2
CASES += [("llama", "flex", form) for form in FORMS] + [("qwen3", "flex", "packed"), ("mistral", "flex", "packed")]


@pytest.fixture
def outcome(device, gradients):
    """Runs the model on a batch, or with None on each document alone."""

    def run(model, batch=None, backward=True):
        with torch.set_grad_enabled(backward):
            if batch is None:
                alone = [model(input_ids=torch.tensor([ids], device=device), use_cache=False) for ids in documents()]
                logits = torch.cat([output.logits[0] for output in alone])
            else:
                inputs = {name: value for name, value in batch.items() if name not in ("labels", "row_lengths")}
                inputs = {n: value.to(device) if torch.is_tensor(value) else value for n, value in inputs.items()}
                logits = model(**inputs, use_cache=False).logits
                mask = inputs.get("attention_mask")
                logits = logits.flatten(0, 1) if mask is None else logits[mask.bool()]
        if backward:
            weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(device)
            (logits.float() * weights).sum().backward()
        return Outcome(logits.detach(), gradients(model))

    return run


@pytest.fixture
def reference(build, outcome):
    """The outcome in float32, and that of eager attention in bfloat16, both of each document alone."""

    def made(architecture, **options):
        options = {**MODELS[architecture], **options}
        return tuple(
            outcome(build(architecture, dtype, attn_implementation="eager", **options))
            for dtype in (torch.float32, torch.bfloat16)
        )

    return made


@pytest.fixture
def assert_near(record_property, distance):
    """Compares errors: that of a fast kernel may be ``factor`` times that of eager attention in bfloat16."""

    def check(what, fast, eager, exact, factor):
        error, allowed = distance(fast, exact), factor * distance(eager, exact)
        record_property(f"error of {what}", f"{error:.2e}, allowed {allowed:.2e}")
        assert allowed < 0.2, (
            f"eager attention in bfloat16 misses the {what} by {allowed / factor:.3e}: nothing is shown"
        )
        assert error <= allowed, (
            f"the {what} miss float32 by {error:.3e}; those of eager attention in bfloat16 by {allowed / factor:.3e}, "
            f"and {factor:g} times that is allowed: {allowed:.3e}"
        )

    return check


@pytest.mark.parametrize(("architecture", "implementation", "form"), CASES)
def test_logits_and_gradients_are_as_near_to_float32_as_those_of_eager_attention(
    build, outcome, reference, assert_near, device, architecture, implementation, form
):
    if implementation == "flex" and device.type == "cpu" and (architecture, form) != ("llama", "packed"):
        pytest.skip("on a CPU flex takes long to compile, and one case tries it")
    torch._dynamo.reset()  # after a few recompilations flex would not be compiled any more
    exact, eager = reference(architecture)
    model = build(architecture, torch.bfloat16, **MODELS[architecture])
    backward = implementation != "flex" or device.type == "cuda"  # flex has none on a CPU

    with attending(model, implementation):
        fast = outcome(model, FORMS[form](), backward)

    assert_near("logits", fast.logits, eager.logits, exact.logits, LOGITS)
    if backward:
        assert_near("gradients", fast.gradients, eager.gradients, exact.gradients, GRADIENTS)


@pytest.mark.parametrize("architecture", MODELS)
def test_documents_that_see_each_other_would_not_pass(build, outcome, reference, distance, architecture):
    exact, eager = reference(architecture)
    batch = packed()
    batch["position_ids"] = torch.arange(ROW).expand(len(batch["input_ids"]), ROW)

    leaking = outcome(build(architecture, torch.bfloat16, **MODELS[architecture]), batch)

    assert distance(leaking.logits, exact.logits) > 5 * LOGITS * distance(eager.logits, exact.logits)
    assert distance(leaking.gradients, exact.gradients) > 5 * GRADIENTS * distance(eager.gradients, exact.gradients)


def by_definition(query, key, value, window):
    """Causal attention within the documents: all scores, with a mask."""
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)).to(query.device)
    places = torch.arange(len(document), device=query.device)
    back = places[:, None] - places
    seen = (document[:, None] == document) & (back >= 0) & (back < (window or len(document)))
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    scores = (query @ key.transpose(2, 3)) * query.shape[-1] ** -0.5
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 48])
@pytest.mark.parametrize(("width", "value_width"), [(64, 64), (128, 128), (100, 100), (64, 32)])
@pytest.mark.parametrize("key_heads", [8, 2])
def test_torchs_kernel_computes_attention_within_documents(device, assert_near, key_heads, width, value_width, window):
    compute = by_kernel if device.type == "cuda" else one_by_one  # as the kernel has no form for a CPU
    generator, tokens = torch.Generator().manual_seed(0), sum(LENGTHS)
    shapes = [(1, 8, tokens, width), (1, key_heads, tokens, width), (1, key_heads, tokens, value_width)]
    inputs = [torch.randn(shape, generator=generator).to(device, torch.bfloat16) for shape in shapes]
    weights = torch.randn(1, tokens, 8, value_width, generator=generator).to(device)
    places = torch.cat([torch.arange(length) for length in LENGTHS])[None].to(device)
    within = from_positions(places, apart=device.type == "cpu").with_window(window)

    def run(function, dtype):
        tensors = [tensor.to(dtype, copy=True).requires_grad_() for tensor in inputs]
        out = function(*tensors)
        (out.float() * weights).sum().backward()
        return Outcome(out.detach(), {name: t.grad for name, t in zip("qkv", tensors, strict=True)})

    exact, eager = (run(lambda *qkv: by_definition(*qkv, window), kind) for kind in (torch.float32, torch.bfloat16))
    fast = run(lambda *qkv: compute(*qkv, within, None), torch.bfloat16)

    assert_near("outputs", fast.logits, eager.logits, exact.logits, LOGITS)
    assert_near("gradients", fast.gradients, eager.gradients, exact.gradients, GRADIENTS)


@pytest.mark.parametrize(
    ("implementation", "padding_free"),
    [("varlen", True), ("varlen", False), ("sdpa_flash", True), ("sdpa_flash", False), ("flex", True)],
)
def test_a_run_in_mixed_precision_has_the_losses_of_one_in_float32(
    build, pipeline, losses, device, implementation, padding_free
):
    if implementation == "flex" and device.type == "cpu":
        pytest.skip("flex has no backward on a CPU")
    torch._dynamo.reset()
    model = build(attn_implementation="eager").cpu()
    exact = losses(pipeline(model, Packing(), name="exact").run())

    plugins = Packing(), FlashAttn(implementation=implementation, padding_free=padding_free)
    found = losses(pipeline(model, *plugins, name="fast", train={"bf16": True}).run())

    assert len(found) == 4
    # Rounding to bfloat16 moves a loss, a mean over hundreds of tokens, by less than a thousandth.
    assert found == pytest.approx(exact, rel=5e-3)
