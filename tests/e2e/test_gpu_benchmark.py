"""The GPU benchmark, tried whole at toy size on the CPU: its figures are no measurement, its losses and counts are."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

FIGURES = {"tokens_per_second", "trained_tokens_per_second", "step_ms", "peak_gib", "mfu", "losses", "steps"}


@pytest.fixture(scope="module")
def bench(root):
    """Runs the script with some flags, and reads its JSON."""

    def run(*flags):
        command = [sys.executable, str(root / "benchmarks" / "gpu.py"), "--json", *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1500, cwd=root)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def module(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    return importlib.import_module


def loss_apart(told, one, other):
    pairs = zip(told["cases"][one]["losses"], told["cases"][other]["losses"], strict=True)
    return max(abs(first - second) for first, second in pairs)


def test_sftkit_and_a_plain_loop_have_the_same_losses_and_counts(bench):
    loop, ours = "toy full unpacked: plain loop", "toy full unpacked: sftkit"
    told = bench("--toy", "--only", loop, "--only", ours)
    assert list(told["cases"]) == [loop, ours]
    assert told["cases"].keys() == {loop, ours}
    for case in told["cases"].values():
        assert case.keys() >= FIGURES
        assert all(case[name] > 0 for name in FIGURES - {"losses"})
        assert len(case["losses"]) == 4
    assert loss_apart(told, loop, ours) < 1e-4
    assert told["cases"][loop]["losses"][0] != told["cases"][loop]["losses"][-1]
    for name in ("tokens", "trained_tokens"):
        assert told["cases"][loop][name] == told["cases"][ours][name]


@pytest.mark.slow
def test_every_case_is_measured_or_told_with_its_reason(bench, tmp_path):
    told = bench("--toy", "--out", str(tmp_path))
    assert len(told["cases"]) == 31
    for name, case in told["cases"].items():
        assert case.keys() >= FIGURES or case.get("not measured") or case.get("error"), name
    for form in ("packed", "unpacked"):
        for setting in ("sftkit", "trl", "trl, no checkpointing"):
            assert "losses" in told["cases"][f"toy full {form}: {setting}"]
    unpacked = "toy full unpacked: "
    assert loss_apart(told, f"{unpacked}plain loop", f"{unpacked}trl") < 1e-4
    assert loss_apart(told, f"{unpacked}plain loop", f"{unpacked}sftkit") < 1e-4
    assert told["cases"][f"{unpacked}trl"]["times_trl"] == 1
    assert "--unsloth-python" in told["cases"][f"{unpacked}unsloth"]["not measured"]
    assert told["head"]["apart"] < 1e-5
    assert all(target["met"] is None for target in told["targets"])
    written = {path.suffix: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert json.loads(written[".json"])["cases"] == told["cases"]
    assert "| trl |" in written[".md"]


def test_without_a_gpu_and_without_toy_nothing_is_measured(bench, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert bench()["cases"] == {}


def test_a_case_that_is_not_known_is_an_error_with_the_known_ones(root):
    command = [sys.executable, str(root / "benchmarks" / "gpu.py"), "--toy", "--only", "9B"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=root)
    assert done.returncode == 1
    assert "toy full packed: sftkit" in done.stderr


@pytest.mark.parametrize("name", ["0.6B", "1B", "8B"])
def test_weights_are_counted_as_the_models_have_them(module, name):
    import torch
    from transformers import AutoModelForCausalLM

    shape = module("_gpu_cases").SHAPES[name]
    layers, head = module("_gpu_cases").parameters(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(module("_gpu_model").config_of(shape))
    linear = [part for part in model.modules() if isinstance(part, torch.nn.Linear)]
    assert sum(part.weight.numel() for part in linear) == layers + head


@pytest.mark.parametrize("train", ["full", "lora"])
def test_operations_are_counted_as_torch_counts_them_but_for_the_half_that_causal_attention_leaves_out(module, train):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    child = module("_gpu_child")
    shape, length = module("_gpu_cases").SHAPES["toy"], 24
    model = module("_gpu_model").model_of(shape, "cpu", attn_implementation="eager")
    adapters = 0
    if train == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(target_modules=child.LINEAR, **child.LORA))
        adapters = sum(part.numel() for part in model.parameters() if part.requires_grad)
        assert adapters == child.LORA["r"] * child.adapter_widths(shape)
        model.enable_input_require_grads()
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(length)[None], use_cache=False).logits.sum().backward()
    width = shape["num_attention_heads"] * shape["head_dim"]
    half = 6 * shape["num_hidden_layers"] * width * length**2
    counted = module("_gpu_flops").step_flops(shape, train, length, length, length**2, adapters)
    assert counter.get_total_flops() - half == pytest.approx(counted, rel=0.01)


def test_a_packed_row_counts_its_documents_by_either_sides_columns(module):
    count = module("_gpu_child").count
    labels = [-100, 5, 6, -100, 8]
    packed = {"input_ids": [4, 5, 6, 7, 8], "labels": labels, "position_ids": [0, 1, 2, 0, 1]}
    assert count(packed) == (5, 3, 13)
    unmasked = {"input_ids": [4, 5, 6, 7, 8], "labels": [4, 5, 6, 7, 8], "seq_lengths": [3, 2]}
    assert count(unmasked) == (5, 3, 13)
    assert count({"input_ids": [4, 5, 6, 7, 8], "labels": labels}) == (5, 3, 25)


def test_a_target_is_met_by_the_best_of_sftkits_settings(module):
    results = {
        "8B lora packed: trl": {"tokens_per_second": 100.0, "mfu": 0.3},
        "8B lora packed: sftkit": {"tokens_per_second": 110.0, "mfu": 0.44},
        "8B lora packed: sftkit + liger": {"tokens_per_second": 120.0, "mfu": 0.46},
        "0.6B full packed: sftkit": {"error": "out of memory"},
    }
    report = module("_gpu_report")
    report.add_ratios(results)
    found = {target["target"]: target for target in report.targets(results, {})}
    speed, mfu, missing, *head = found.values()
    assert (speed["value"], speed["met"], speed["by"]) == (1.2, True, "sftkit + liger")
    assert (mfu["value"], mfu["met"]) == (0.46, True)
    assert missing["met"] is None
    assert [target["met"] for target in head] == [None, None]
