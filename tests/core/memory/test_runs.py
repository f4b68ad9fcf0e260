"""The estimate of a run, item by item, before its weights are read."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from sftkit import Pipeline
from sftkit.memory import DeviceMemory, estimate_memory
from sftkit.memory.run import estimate_run
from sftkit.memory.unloaded import UnknownMemoryError
from sftkit.testing import tiny_config, tiny_tokenizer
from sftkit.units import size_text

ROWS = [{"prompt": f"question {n}? ", "completion": f"answer {n}"} for n in range(20)]


@pytest.fixture
def estimate(tmp_path, directory):
    """Estimates a run; of the saved model, unless another is passed."""

    def run(model=None, *, plugins=(), train=None):
        train = {"output_dir": str(tmp_path / "run"), "num_train_epochs": 1, "use_cpu": True, **(train or {})}
        config = {"data": {"max_length": 64, "cache": False, "train": "given"}, "train": train}
        model = str(directory) if model is None else model
        made = Pipeline(model=model, data=ROWS, config=config, plugins=plugins, tokenizer=tiny_tokenizer())
        return estimate_run(made.prepare())

    return run


def test_an_estimate_lists_its_items(estimate, make_model):
    found = estimate()
    weights = sum(weight.nbytes for weight in make_model().parameters())
    assert found.items["weights"] == pytest.approx(weights, rel=0.001)
    assert found.items["optimizer state"] == 2 * weights
    assert found.total == sum(found.items.values())
    assert (found.fits, found.near) == (True, False)
    assert found.as_dict()["available"] == found.available.most > found.total


def test_an_estimate_that_does_not_fit_says_so(estimate, monkeypatch):
    monkeypatch.setattr("sftkit.memory.estimate.memory_of", lambda _: DeviceMemory("cpu", 10**8, 10**8 + 10**6))
    found = estimate()
    assert (found.fits, found.near) == (False, True)
    assert f"about {size_text(found.total)} of 101 MB on cpu (process" in found.describe()


def test_frozen_weights_have_no_optimizer_state(estimate):
    pytest.importorskip("peft")
    whole, lora = estimate().items, estimate(plugins=["peft:r=4"]).items
    assert lora["optimizer state"] < 0.2 * whole["optimizer state"]
    assert lora["weights"] > whole["weights"]


def test_a_loaded_model_takes_as_much_as_its_directory(estimate, make_model):
    model = make_model()
    by_name, loaded = estimate().items, estimate(model).items
    by_name.pop("process"), loaded.pop("process")
    assert loaded == by_name
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}


def test_a_saved_adapter_is_estimated_on_its_base(estimate, make_model, with_lora, directory, tmp_path):
    adapted = with_lora(type(make_model()).from_pretrained(directory), r=4)
    adapted.peft_config["default"].base_model_name_or_path = str(directory)
    adapted.save_pretrained(tmp_path / "adapter")
    trained = sum(weight.nbytes for weight in adapted.parameters() if weight.requires_grad)
    assert estimate(str(tmp_path / "adapter")).items["optimizer state"] == 2 * trained


def test_a_model_without_a_local_configuration_has_no_estimate(estimate):
    with pytest.raises(UnknownMemoryError, match="no local configuration of 'owner/name'"):
        estimate("owner/name")


def test_a_run_that_shares_weights_among_devices_has_no_estimate(estimate):
    pytest.importorskip("deepspeed")
    with pytest.raises(UnknownMemoryError, match="plugin deepspeed divides weights"):
        estimate(plugins=["deepspeed"])


def test_checkpointing_by_a_training_argument_counts(estimate):
    train = {"per_device_train_batch_size": 20}
    plain, less = estimate(train=train), estimate(train={**train, "gradient_checkpointing": True})
    assert less.items["activations"] < plain.items["activations"]


def test_several_processes_hold_gradients_twice(make_model, batch, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    model = make_model()
    items = estimate_memory(model, batch, tiny_config(train={"use_cpu": True})).items
    assert items["gradients between processes"] == sum(weight.nbytes for weight in model.parameters())


#: So large that activations are most of the process.
MEASURED = {
    "llama": {"length": 1024, "sizes": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6}},
    "llama, selective": {
        "length": 1024,
        "sizes": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8},
        "plugins": ["activations:checkpointing=selective"],
    },
    "gpt2, with dropout": {"length": 512, "architecture": "gpt2"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_the_estimate_is_within_a_fifth_of_the_peak_of_a_run(root, name):
    setting = json.dumps({"name": name, "plugins": [], **MEASURED[name]})
    found = {}
    for what in ("estimated", "measured"):
        command = [sys.executable, str(root / "benchmarks" / "memory.py"), what, setting]
        # Blocks are returned when they are freed; how much an old glibc keeps instead differs from run to run.
        variables = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=variables)
        assert done.returncode == 0, done.stderr
        found |= json.loads(done.stdout.splitlines()[-1])
    assert found["peak"] > 1.4 * found["items"]["process"]
    assert found["total"] == pytest.approx(found["peak"], rel=0.2)
