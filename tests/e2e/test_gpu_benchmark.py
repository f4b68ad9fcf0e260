"""What the GPU run measures and reports, tried at toy size on the CPU: counts, losses and classes, not speed."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import pytest


@pytest.fixture
def module(root, monkeypatch):
    """Imports a module of the benchmark."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    return lambda name: importlib.import_module(f"gpu.{name}")


@pytest.fixture
def measured(module, tmp_path):
    """Measures a case in this process."""

    def run(name, profiled=0):
        case = module("cases").Case.of(name)
        lengths = [(9, 14), (30, 25), (3, 60), (44, 8)]
        spec = module("cases").spec_of(case, lengths, str(tmp_path), "cpu", profiled)
        return module("child").step(spec)

    return run


@pytest.mark.parametrize("form", ["packed", "unpacked"])
def test_sftkit_and_the_plain_loop_have_the_same_losses_and_counts(measured, form):
    loop, ours = measured(f"toy full {form}: plain loop"), measured(f"toy full {form}: sftkit")
    assert len(loop["losses"]) == 4
    assert loop["losses"] == pytest.approx(ours["losses"], abs=1e-4)
    assert loop["losses"][0] != loop["losses"][-1]
    for name in ("tokens", "trained_tokens"):
        assert loop[name] == ours[name] > 0


def test_trl_has_the_losses_of_the_plain_loop_on_unpacked_rows(measured):
    loop, trl = measured("toy full unpacked: plain loop"), measured("toy full unpacked: trl")
    assert trl["losses"] == pytest.approx(loop["losses"], abs=1e-4)
    assert trl["tokens"] == loop["tokens"]
    assert trl["attention"] == "sdpa"


def test_rates_are_medians_so_that_one_slow_step_does_not_count(module, tmp_path):
    cases, child = module("cases"), module("child")
    spec = replace(
        cases.spec_of(cases.Case.of("toy full unpacked: sftkit"), [(5, 5)], str(tmp_path), "cpu"), batch=1, steps=3
    )

    class Seen:
        seconds, losses, peak_gib, attention, total = (0.1, 9.0, 0.1), (), 0.0, "sdpa", 4
        rows = [{"input_ids": [1] * 10, "labels": [-100] * 5 + [1] * 5}] * 4

    assert child.figures(spec, Seen)["tokens_per_second"] == 100.0
    assert child.figures(spec, Seen)["trained_tokens_per_second"] == 50.0


@pytest.mark.parametrize("name", ["0.6B", "1B", "8B"])
def test_weights_are_counted_as_the_models_have_them(module, name):
    import torch
    from transformers import AutoModelForCausalLM

    shape = module("cases").SHAPES[name]
    layers, head = module("cases").parameters(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(module("model").config_of(shape))
    linear = [part for part in model.modules() if isinstance(part, torch.nn.Linear)]
    assert sum(part.weight.numel() for part in linear) == layers + head


@pytest.mark.parametrize("train", ["full", "lora"])
def test_operations_equal_torchs_count_without_the_acausal_half_of_attention(module, train):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    flops, runs = module("flops"), module("runs")
    shape, length = module("cases").SHAPES["toy"], 24
    model = module("model").model_of(shape, "cpu", attn_implementation="eager")
    adapters = 0
    if train == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(target_modules=runs.LINEAR, **runs.LORA))
        adapters = sum(part.numel() for part in model.parameters() if part.requires_grad)
        assert adapters == runs.LORA["r"] * flops.adapter_widths(shape)
        model.enable_input_require_grads()
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(length)[None], use_cache=False).logits.sum().backward()
    width = shape["num_attention_heads"] * shape["head_dim"]
    half = 6 * shape["num_hidden_layers"] * width * length**2
    counted = flops.step_flops(shape, train, length, length, length**2, adapters)
    assert counter.get_total_flops() - half == pytest.approx(counted, rel=0.01)


def test_a_packed_row_counts_its_documents_by_either_sides_columns(module):
    count = module("flops").count
    labels = [-100, 5, 6, -100, 8]
    packed = {"input_ids": [4, 5, 6, 7, 8], "labels": labels, "position_ids": [0, 1, 2, 0, 1]}
    assert count(packed) == (5, 3, 13)
    unmasked = {"input_ids": [4, 5, 6, 7, 8], "labels": [4, 5, 6, 7, 8], "seq_lengths": [3, 2]}
    assert count(unmasked) == (5, 3, 13)
    assert count({"input_ids": [4, 5, 6, 7, 8], "labels": labels}) == (5, 3, 25)


@pytest.fixture
def head(module, monkeypatch):
    """The measurement of the loss heads, of one round, since each collects garbage."""
    found = module("head")
    monkeypatch.setattr(found, "WARMUP", 0)
    monkeypatch.setattr(found, "ROUNDS", 1)
    return found


@pytest.mark.parametrize("name", ["sftkit", "trl", "plain"])
def test_a_loss_head_is_measured_with_its_error_against_float32(head, name):
    found = head.measure(name, **head.TOY_SIZES, device="cpu")
    assert found["tokens"] == head.TOY_SIZES["tokens"]
    for kind in ("trained", "frozen"):
        assert found[kind]["ms"] > 0
    for error in ("loss_error", "hidden_error", "weight_error"):
        assert found[error] < 1e-5


@pytest.mark.slow
def test_the_error_of_a_wrong_loss_head_is_seen(head, monkeypatch):
    wrong = head._plain()
    monkeypatch.setitem(head.LOSSES, "plain", lambda: lambda *arguments: 1.1 * wrong(*arguments))
    found = head.measure("plain", **head.TOY_SIZES, device="cpu")
    assert found["loss_error"] == pytest.approx(0.1, rel=1e-3)
    assert found["weight_error"] == pytest.approx(0.1, rel=1e-3)


def test_the_profile_of_a_step_finds_all_of_its_classes(measured):
    made = measured("toy full packed: sftkit", profiled=2)["profile"]
    assert sum(made["shares"].values()) == pytest.approx(1.0, abs=0.02)
    for name in ("optimizer", "loss", "attention", "GEMM", "other"):
        assert made["shares"][name] > 0, name
    classes = {row["launched_by"]: row["class"] for row in made["kernels"]}
    assert classes["aten::mm"] == "GEMM"
    assert 0 < len(made["kernels"]) <= 20


def host(name, start, length, kind="cpu_op", thread=1):
    return {"ph": "X", "cat": kind, "name": name, "ts": start, "dur": length, "tid": thread, "args": {}}


def kernel(name, start, length, number, launched, thread=1):
    """A kernel on the device's stream 7, and the call that launched it."""
    more = {"args": {"correlation": number}}
    return [
        {**host("cudaLaunchKernel", launched, 1, "cuda_runtime", thread), **more},
        {**host(name, start, length, "kernel", 7), **more},
    ]


def test_kernels_are_classed_by_name_and_by_what_is_around_their_launch(module):
    events = [
        host("_Summed", 0, 20),
        host("aten::mm", 2, 5),
        *kernel("nvjet_tst_128x256", 100, 30, 1, 3),
        host("Optimizer.step#AdamW.step", 30, 10, "user_annotation"),
        *kernel("multi_tensor_apply_kernel", 140, 10, 2, 31),
        *kernel("nvjet_tst_64x64", 160, 20, 3, 50),
        *kernel("void pytorch_flash::flash_bwd_kernel<cutlass::half_t>(Params)", 180, 40, 4, 60),
        host("aten::mul", 70, 4, thread=2),
        *kernel("elementwise_kernel", 215, 10, 5, 71, thread=2),
        {"ph": "X", "cat": "gpu_user_annotation", "name": "Optimizer.step#AdamW.step", "ts": 140, "dur": 10, "tid": 7},
    ]
    profile = module("profile")
    work = {item.name: item for item in profile.work_of(events, "cuda")}
    assert [profile.class_of(item) for item in work.values()] == ["loss", "optimizer", "GEMM", "attention", "other"]
    assert work["nvjet_tst_128x256"].around == ("_Summed", "aten::mm")
    busy = profile.busy_seconds(events, "cuda")
    assert busy == pytest.approx(105e-6)  # two kernels run at once for 5 microseconds
    made = profile.shares(list(work.values()), busy, steps=1, step_seconds=210e-6)
    assert made["shares"]["idle"] == pytest.approx(0.5)
    assert sum(made["shares"].values()) == pytest.approx(1.0, abs=1e-3)
    assert made["kernels"][0]["name"] == "pytorch_flash::flash_bwd_kernel"


def test_a_trace_without_kernels_is_an_error(module):
    with pytest.raises(RuntimeError, match="no work of the device"):
        module("profile").shares([], 0.0, 1, 0.1)


def entry(speed, run=0, **more):
    return {"status": "done", "tokens_per_second": speed, "run": run, **more}


def test_ratios_compare_settings_of_one_run_only(module):
    entries = {
        "8B lora packed: trl": entry(100.0, run=1),
        "8B lora packed: trl, no checkpointing": entry(125.0, run=1),
        "8B lora packed: sftkit": entry(150.0, run=1),
        "8B lora packed: sftkit + liger": entry(300.0, run=0, times_trl=2.0),
    }
    module("results").add_ratios(entries)
    ours = entries["8B lora packed: sftkit"]
    assert (ours["times_trl"], ours["times_best_trl"], ours["best_trl"]) == (1.5, 1.2, "trl, no checkpointing")
    assert entries["8B lora packed: sftkit + liger"]["times_trl"] == 2.0


def test_a_target_is_met_by_the_best_of_sftkits_settings(module):
    step = {
        "8B lora packed: trl": entry(100.0, times_trl=1.0),
        "8B lora packed: sftkit": entry(110.0, times_trl=1.1),
        "8B lora packed: sftkit + liger": entry(120.0, times_trl=1.2),
        "8B full packed: sftkit + liger": entry(50.0, mfu=0.4),
        "0.6B full packed: sftkit": {"status": "failed", "reason": "out of memory"},
    }
    head = module("head")
    heads = {"sftkit": {"status": "done", **head.SIZES, "trained": {"ms": 70.0, "peak_gib": 6.5}}}
    targets = module("targets")
    found = list(targets.targets(step, heads))
    assert [targets.verdict(target) for target in found] == ["not measured", "met", "missed", "met", "missed"]
    assert (found[1]["value"], found[1]["by"]) == (1.2, "sftkit + liger")


def test_where_liger_is_missing_the_same_settings_run_without_it(module):
    cases = module("cases")
    toy = {case.setting for case in cases.cases(toy=True, everything=False)}
    assert {"sftkit + flash_attn", "sftkit + flash_attn + compile", "sftkit + flash_attn + activations"} <= toy
    assert "sftkit + flash_attn + liger" not in toy


def test_a_case_that_does_not_fit_the_gpu_is_missing_with_the_sizes(module):
    cases = module("cases")
    case = cases.Case("8B", "full", "packed", "sftkit + flash_attn + activations")
    assert cases.missing(case, on_gpu=True, gib=79.1) == ""
    assert "take 60 GiB, and the GPU has 24" in cases.missing(case, on_gpu=True, gib=24.0)


def test_the_newest_readable_results_of_the_card_are_found(module, tmp_path, capsys):
    results = module("results")
    first, second = tmp_path / "one", tmp_path / "two"
    for folder, when, card in ((first, "2026-01-02", "NVIDIA H100"), (second, "2026-01-03", "NVIDIA H100")):
        folder.mkdir()
        content = {"card": card, "runs": [{"when": when}]}
        (folder / "gpu-h100-2026-01-01.json").write_text(json.dumps(content))
    (second / "gpu-h100-2026-01-04.json").write_text('{"card": "NVIDIA H100", "runs": [')
    found = results.newest("NVIDIA H100", [first, second, tmp_path / "nowhere"])
    assert found["runs"] == [{"when": "2026-01-03"}]
    assert "gpu-h100-2026-01-04.json" in capsys.readouterr().out
    assert results.newest("NVIDIA H200", [first, second]) is None


def test_trl_is_measured_again_with_a_setting_that_is_compared_with_it(module, tmp_path):
    case = module("cases").Case.of
    names = ("0.6B full packed: trl", "0.6B full packed: sftkit", "8B lora packed: trl", "8B lora packed: sftkit")
    step = {names[0]: entry(1.0), names[2]: entry(1.0), names[1]: {"status": "failed"}, names[3]: {"status": "missing"}}
    base = {"card": "any", "runs": [], "tests": {}, "step": step, "head": {}, "profile": {}}
    results = module("results").Results("any", tmp_path, base)
    planned = [case(name) for name in names]
    absent = {names[3]: "the package liger_kernel is not installed"}
    found = results.open_cases(planned, lambda case: absent.get(case.name, ""))
    assert [case.name for case in found] == [names[0], names[1], names[3]]


def test_file_names_come_from_the_card(module):
    assert module("results").slug("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"
