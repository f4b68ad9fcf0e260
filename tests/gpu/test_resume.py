"""A run that is resumed on the device ends bit by bit where an undisturbed one does."""

from __future__ import annotations

import os

import pytest
import torch

from sftkit_plugins.neftune import NEFTune
from sftkit_plugins.packing import Packing
from sftkit_plugins.peft import PEFT

pytestmark = pytest.mark.gpu

#: Of transformers.TrainingArguments: kernels that add up in the same order each time.
TRAIN = {"full_determinism": True, "save_strategy": "steps", "save_steps": 3}


@pytest.fixture(autouse=True)
def determinism_ends(device):
    """What `full_determinism` switches on for the whole process is off again after the test."""
    variables = dict(os.environ)
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    os.environ.clear()
    os.environ.update(variables)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


@pytest.mark.parametrize(
    ("plugins", "train"),
    [
        ([Packing(), NEFTune()], {}),
        ([Packing(), NEFTune()], {"bf16": True}),
        ([PEFT(r=4, dropout=0.1), NEFTune()], {"bf16": True, "gradient_accumulation_steps": 2}),
    ],
    ids=["float32", "bf16", "lora"],
)
def test_a_resumed_run_ends_bitwise_as_an_undisturbed_one(build, pipeline, losses, plugins, train):
    model, train = build("llama").cpu(), {**TRAIN, **train}

    whole = pipeline(model, *plugins, name="whole", train={**train, "max_steps": 6}).run()
    half = pipeline(model, *plugins, name="cut", train={**train, "max_steps": 3}).run().model.state_dict()
    rest = pipeline(model, *plugins, name="cut", train={**train, "max_steps": 6}, resume=True).run()

    assert losses(rest) == losses(whole)
    expected, found = whole.model.state_dict(), rest.model.state_dict()
    assert found.keys() == expected.keys()
    apart = {name: float((found[name] - value).abs().max()) for name, value in expected.items()}
    assert {name: by for name, by in apart.items() if by} == {}
    assert any(not torch.equal(half[name], value) for name, value in expected.items())
