"""NEFTune's noise on the device is bounded by alpha / sqrt(L * d), L tokens in each document and d the width."""

from __future__ import annotations

import math

import pytest
import torch

from sftkit_plugins.neftune import NEFTune

pytestmark = pytest.mark.gpu

ALPHA, COLUMNS, DRAWS = 5.0, 64, 24


@pytest.fixture
def model(build, request):
    """A model whose embeddings are zero: what is measured is the noise, without the rounding of a sum."""
    made = build("llama", getattr(request, "param", torch.float32))
    with torch.no_grad():
        made.get_input_embeddings().weight.zero_()
    return made


def largest_noise(model, device, **inputs):
    """The largest noise of each token over some forwards, as a share of ``ALPHA / sqrt(d)`` (``[2, T]``)."""
    seen = []
    inputs = {name: value.to(device) for name, value in inputs.items()}
    with NEFTune(alpha=ALPHA).inject_noise(model):
        handle = model.get_input_embeddings().register_forward_hook(lambda *args: seen.append(args[2].detach()))
        for _ in range(DRAWS):
            model(**inputs, use_cache=False)
        handle.remove()
    width = model.config.hidden_size
    return torch.stack([noise.float().abs().amax(-1) for noise in seen]).amax(0).cpu() / (ALPHA / math.sqrt(width))


def assert_bound(found, length, rounding=1e-4):
    """The noise stays within the bound of a document of this length, and comes close to it."""
    bound = 1 / math.sqrt(length)
    low, high = float(found.min()) / bound, float(found.max()) / bound
    assert high <= 1 + rounding, f"the noise is up to {high:.4f} of the bound of {length} tokens"
    assert low >= 0.95, f"the noise of a token comes to no more than {low:.4f} of the bound of {length} tokens"


def ids():
    return torch.arange(3, 3 + 2 * COLUMNS).view(2, COLUMNS)


@pytest.mark.parametrize(("model", "rounding"), [(torch.float32, 1e-4), (torch.bfloat16, 2**-7)], indirect=["model"])
def test_noise_of_a_row_is_bounded_by_its_length(model, device, rounding):
    assert_bound(largest_noise(model, device, input_ids=ids()), COLUMNS, rounding)


def test_noise_of_packed_documents_is_bounded_by_their_own_lengths(model, device):
    places = torch.tensor([[*range(4), *range(60)], [*range(31), *range(32), 0]])

    found = largest_noise(model, device, input_ids=ids(), position_ids=places)

    for row, low, high in [(0, 0, 4), (0, 4, 64), (1, 0, 31), (1, 31, 63), (1, 63, 64)]:
        assert_bound(found[row, low:high], high - low)


def test_padding_gets_no_noise_and_does_not_count(model, device):
    mask = torch.ones(2, COLUMNS, dtype=torch.long)
    mask[0, 40:] = 0

    found = largest_noise(model, device, input_ids=ids(), attention_mask=mask)

    assert_bound(found[0, :40], 40)
    assert float(found[0, 40:].max()) == 0
    assert_bound(found[1], COLUMNS)


def test_there_is_none_in_evaluation(model, device):
    assert float(largest_noise(model.eval(), device, input_ids=ids()).max()) == 0
