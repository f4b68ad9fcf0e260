"""The estimate of a run's memory counts what a step really allocates, and changes nothing by counting."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import psutil
import pytest
import torch
import transformers
from packaging.version import Version
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from sftkit import Pipeline
from sftkit.checks import run_checks
from sftkit.checks.memory import estimate_run
from sftkit.memory import device, estimate_memory
from sftkit.memory.batch import largest_batch
from sftkit.memory.checkpointing import checkpointed, full, offloaded, selective
from sftkit.memory.optimizer import STATES, state_bytes
from sftkit.memory.quantized import UnknownQuantizationError, quantized_bytes
from sftkit.memory.trace import LiveBytes, fake_weights, trace_step
from sftkit.testing import tiny_config, tiny_model, tiny_tokenizer
from sftkit.training.batches import Batch
from sftkit.training.head import LossHead
from sftkit.training.loss import HeadLoss

CPU = torch.device("cpu")
ROWS, LENGTH = 4, 256
SIZES = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 4, "head_dim": 16}
GOOD = [{"prompt": f"question {n}? ", "completion": f"answer {n}"} for n in range(20)]


def model_of(architecture="llama", **options):
    sizes = {"n_embd": 64, "n_layer": 4} if architecture == "gpt2" else SIZES
    return tiny_model(architecture, vocab_size=1000, **(sizes | options)).train()


def batch_of(*, packed=False, rows=ROWS, length=LENGTH):
    ids = torch.randint(3, 900, (rows, length), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": torch.where(torch.arange(length) < length // 2, -100, ids)}
    if packed:
        batch["position_ids"] = (torch.arange(length) % 100).expand(rows, length).contiguous()
    else:
        batch["attention_mask"] = torch.ones_like(ids)
        batch["attention_mask"][0, -5:] = 0
    return batch


def allocated(model, batch, autocast=None):
    """The peak of what PyTorch's own profiler sees allocated on the CPU in a step, less what was there before."""
    head, known = LossHead(model, HeadLoss()), Batch.of(dict(batch))

    def step():
        with torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext():
            total, _, _ = head.ask(model, known.inputs, known.targets)
        total.backward()

    with head.installed():
        step()  # what is made once is made
        model.zero_grad()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            step()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    assert peak > 1e6
    return peak


def refused_before(version):
    """Expect older versions of transformers to read a tensor's value in the forward, which fake tensors lack."""
    if Version(transformers.__version__) < Version(version):
        return pytest.raises(DataDependentOutputException)
    return contextlib.nullcontext()


def traced(model, batch, autocast=None, accumulates=False):
    return trace_step(model, batch, CPU, loss=HeadLoss(), autocast=autocast, accumulates=accumulates)


def with_lora(model, **options):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **options))


KINDS = {"none": contextlib.nullcontext, "full": lambda m: checkpointed(m, full())}
KINDS["selective"] = lambda model: checkpointed(model, selective())
KINDS["every second layer"] = lambda model: checkpointed(model, full(), every=2)
CASES = {
    "llama": {},
    "llama, eager attention": {"attn_implementation": "eager"},
    "gpt2, with dropout": {"architecture": "gpt2", "attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1},
    "qwen3": {"architecture": "qwen3"},
    "gemma2, whose logits are capped": {"architecture": "gemma2"},
    "mixtral, of experts": {"architecture": "mixtral"},
    "opt, with tied embeddings": {"architecture": "opt", "word_embed_proj_dim": 64},
}


@pytest.mark.parametrize("case", CASES)
def test_a_traced_step_takes_what_the_profiler_sees_allocated(case):
    model, batch = model_of(**CASES[case]), batch_of()
    with refused_before("5.23" if "opt" in case else "5.0"):
        assert traced(model, batch).total == pytest.approx(allocated(model, batch), rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_so_it_does_with_checkpointing(kind, architecture):
    model, batch = model_of(architecture), batch_of()
    with KINDS[kind](model):
        assert traced(model, batch).total == pytest.approx(allocated(model, batch), rel=0.01)


def test_so_it_does_on_packed_rows():
    model, batch = model_of(), batch_of(packed=True)
    assert traced(model, batch).total == pytest.approx(allocated(model, batch), rel=0.01)


@pytest.mark.parametrize("kind", ["none", "full"])
def test_so_it_does_in_mixed_precision(kind):
    model, batch = model_of(), batch_of()
    with KINDS[kind](model):
        found = traced(model, batch, torch.bfloat16).total
        assert found == pytest.approx(allocated(model, batch, torch.bfloat16), rel=0.05)


@pytest.mark.parametrize("kind", ["none", "selective", "full"])
def test_so_it_does_with_adapters(kind):
    model, batch = with_lora(model_of(), lora_dropout=0.1).train(), batch_of()
    with KINDS[kind](model):
        assert traced(model, batch).total == pytest.approx(allocated(model, batch), rel=0.01)


def test_a_model_without_weights_takes_what_it_takes_with_them():
    loaded, batch = model_of(), batch_of()
    with torch.device("meta"):
        unloaded = type(loaded)(loaded.config)
    assert traced(unloaded, batch) == traced(loaded, batch)


def test_gradients_of_an_earlier_micro_batch_are_there_while_accumulating():
    model, batch = model_of(), batch_of()
    trained = sum(weight.nbytes for weight in model.parameters())
    assert traced(model, batch, accumulates=True).gradients >= trained
    assert traced(model, batch).gradients < trained


def kept_by_the_forward(model, checkpointing):
    """Bytes on a device, which is not the host's, when the hidden states are made."""
    there = torch.device("meta")
    fake, counted = FakeTensorMode(allow_non_fake_inputs=True), LiveBytes(there)
    with checkpointing, fake, fake_weights(model, fake, counted, there):
        ids = torch.zeros(ROWS, LENGTH, dtype=torch.long, device=there)
        counted.ignore(ids)
        with counted:
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            assert hidden.requires_grad
            return counted.live["activations"]


def test_offloaded_layers_leave_the_device():
    model = model_of()
    kept = kept_by_the_forward(model, checkpointed(model, full()))
    left = kept_by_the_forward(model, checkpointed(model, offloaded(full(), pin_memory=False)))
    inputs = SIZES["num_hidden_layers"] * ROWS * LENGTH * SIZES["hidden_size"] * 4
    assert kept - left == pytest.approx(inputs, rel=0.3)


def test_tracing_leaves_model_gradients_modes_and_random_state_as_they_were():
    model = with_lora(model_of(attention_dropout=0.1), lora_dropout=0.1).eval()
    before = {name: (id(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    attributes = [sorted(vars(module)) for module in model.modules()]
    traced(model, batch_of())
    for name, value in model.state_dict(keep_vars=True).items():
        assert id(value) == before[name][0]
        assert torch.equal(value, before[name][1])
    assert all(weight.grad is None for weight in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert [sorted(vars(module)) for module in model.modules()] == attributes
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_fails_gets_its_weights_back():
    model = model_of()
    weight = model.get_input_embeddings().weight
    with pytest.raises((RuntimeError, ValueError, IndexError, TypeError)):
        traced(model, {**batch_of(), "input_ids": torch.zeros(2, 3, 4, 5, dtype=torch.long)})
    assert model.get_input_embeddings().weight is weight


@pytest.mark.parametrize(
    "name", ["adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop", "adafactor", "adamw_8bit", "lion_8bit"]
)
def test_an_optimizer_keeps_what_is_counted(tmp_path, name):
    from transformers import Trainer, TrainingArguments

    if "8bit" in name:
        pytest.importorskip("bitsandbytes")
    model = model_of(hidden_size=128)
    arguments = TrainingArguments(output_dir=str(tmp_path), optim=name, use_cpu=True, report_to="none")
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    optimizer = kind(model.parameters(), **options)
    model(input_ids=batch_of()["input_ids"], labels=batch_of()["labels"]).loss.backward()
    optimizer.step()
    kept = sum(
        value.nbytes
        for state in optimizer.state.values()
        for key, value in state.items()
        if torch.is_tensor(value) and value.dim() and "qmap" not in key
    )
    assert state_bytes(name, list(model.parameters())) == pytest.approx(kept, rel=0.001, abs=0)


def test_every_optimizer_of_transformers_that_needs_no_package_of_its_own_is_counted():
    assert {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"} <= set(STATES)


def test_an_unknown_optimizer_counts_as_adamw_and_is_told(caplog):
    weights = list(model_of().parameters())
    assert state_bytes("galore_adamw", weights) == state_bytes("adamw_torch", weights)
    assert "galore_adamw" in caplog.text


def test_the_largest_batch_has_the_longest_rows():
    from datasets import Dataset

    rows = Dataset.from_list([{"input_ids": [1] * n, "labels": [1] * n} for n in (3, 9, 5, 7, 1)])

    def collator(examples):
        return {"lengths": sorted(len(example["input_ids"]) for example in examples)}

    config = tiny_config(train={"per_device_train_batch_size": 3})
    assert largest_batch(rows, collator, config) == {"lengths": [5, 7, 9]}


def test_the_largest_batch_of_a_stream_has_rows_of_full_length():
    config = tiny_config(train={"per_device_train_batch_size": 2}, data={"max_length": 7})
    stream = iter([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}])
    (one, two) = largest_batch(stream, lambda examples: {"rows": examples}, config)["rows"]
    assert one == two == {"input_ids": [1, 2, 3, 1, 2, 3, 1], "labels": [-100, 2, 3, -100, 2, 3, -100]}


@pytest.mark.parametrize(
    ("lines", "files", "rooms"),
    [
        ("0::/a/b\n", {"a/b": (1000, 700, 200), "a": ("max", 5000, 0), "": (900, 800, 0)}, [500, 100]),
        ("0::/\n", {"": (1000, 1200, 0)}, [0]),
        ("0::/a\n", {"a": ("max", 1, 0)}, []),
        ("0::/not/here\n", {"": (1000, 400, 0)}, [600]),
    ],
)
def test_limits_of_cgroups_above_the_process_are_found(tmp_path, lines, files, rooms):
    (tmp_path / "cgroup").write_text(lines)
    for path, (limit, usage, idle) in files.items():
        group = tmp_path / "fs" / path
        group.mkdir(parents=True, exist_ok=True)
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{usage}\n")
        (group / "memory.stat").write_text(f"anon 1\ninactive_file {idle}\n")
    assert list(device.cgroup_rooms(tmp_path / "cgroup", tmp_path / "fs")) == rooms


def test_limits_of_cgroups_of_version_1_are_found(tmp_path):
    group = tmp_path / "fs" / "memory" / "a"
    group.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("5:cpu:/a\n4:memory:/a\n")
    (group / "memory.limit_in_bytes").write_text("1000\n")
    (group / "memory.usage_in_bytes").write_text("400\n")
    (group / "memory.stat").write_text("inactive_file 3\ntotal_inactive_file 50\n")
    (group.parent / "memory.limit_in_bytes").write_text(f"{1 << 62}\n")
    (group.parent / "memory.usage_in_bytes").write_text("400\n")
    (group.parent / "memory.stat").write_text("total_inactive_file 0\n")
    assert list(device.cgroup_rooms(tmp_path / "cgroup", tmp_path / "fs")) == [650]


def test_there_is_room_for_at_least_what_the_process_holds():
    room = device.room_on(CPU)
    assert room.most > room.held > 50e6
    assert room.most <= psutil.virtual_memory().total


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model_of().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def pipeline(tmp_path, model, *, plugins=(), train=None, data=None):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in GOOD), encoding="utf-8")
    train = {"output_dir": str(tmp_path / "run"), "num_train_epochs": 1, "use_cpu": True, **(train or {})}
    config = {"data": {"train": str(rows), "max_length": 64, "cache": False, **(data or {})}, "train": train}
    return Pipeline(model=model, config=config, plugins=plugins, tokenizer=tiny_tokenizer())


def memory_verdict(checked):
    (verdict,) = [verdict for verdict in checked.verdicts if verdict.name == "memory"]
    return verdict


def test_a_check_tells_the_items_and_whether_they_fit(tmp_path, directory):
    checked = run_checks(pipeline(tmp_path, str(directory)))
    told = checked.as_dict()["memory"]
    assert memory_verdict(checked).status == "ok"
    assert told["fits"] is True
    assert told["total"] == sum(told["items"].values()) < told["available"]
    weights = sum(weight.nbytes for weight in model_of().parameters())
    assert told["items"]["weights"] == pytest.approx(weights, rel=0.001)
    assert told["items"]["optimizer state"] == 2 * weights


def test_what_does_not_fit_is_wrong_and_has_a_mend(tmp_path, directory, monkeypatch):
    monkeypatch.setattr("sftkit.memory.estimate.room_on", lambda _: device.Room("cpu", 10**8, 10**8 + 10**6))
    checked = run_checks(pipeline(tmp_path, str(directory)))
    assert memory_verdict(checked).status == "wrong"
    assert "per_device_train_batch_size" in memory_verdict(checked).mend
    assert checked.wrong


def test_adapters_are_counted_without_what_frozen_weights_do_not_have(tmp_path, directory):
    pytest.importorskip("peft")
    whole = estimate_run(pipeline(tmp_path, str(directory)).prepare()).items
    lora = estimate_run(pipeline(tmp_path, str(directory), plugins=["peft:r=4"]).prepare()).items
    assert lora["optimizer state"] < 0.2 * whole["optimizer state"]
    assert lora["weights"] > whole["weights"]


def test_a_loaded_model_is_estimated_as_its_directory_is(tmp_path, directory):
    by_name = estimate_run(pipeline(tmp_path, str(directory)).prepare()).items
    model = model_of()
    loaded = estimate_run(pipeline(tmp_path, model).prepare()).items
    by_name.pop("process"), loaded.pop("process")
    assert loaded == by_name
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}


def test_a_saved_adapter_is_estimated_on_its_base(tmp_path, directory):
    adapted = with_lora(type(model_of()).from_pretrained(directory), r=4)
    adapted.peft_config["default"].base_model_name_or_path = str(directory)
    adapted.save_pretrained(tmp_path / "adapter")
    items = estimate_run(pipeline(tmp_path, str(tmp_path / "adapter")).prepare()).items
    trained = sum(weight.nbytes for weight in adapted.parameters() if weight.requires_grad)
    assert items["optimizer state"] == 2 * trained


def test_a_model_that_is_not_here_cannot_be_told(tmp_path):
    config = {"model": {"name": "owner/name"}, "train": {"output_dir": str(tmp_path / "run")}}
    checked = run_checks(Pipeline(config=config, data=GOOD, tokenizer=tiny_tokenizer()))
    assert "cannot be told before the model is loaded" in memory_verdict(checked).what
    assert checked.as_dict()["memory"] is None


def test_what_is_shared_out_among_devices_is_not_guessed(tmp_path, directory):
    checked = run_checks(pipeline(tmp_path, str(directory), train={"fsdp": "full_shard"}))
    assert "train.fsdp" in memory_verdict(checked).what


def test_checkpointing_by_the_training_arguments_counts(tmp_path, directory):
    train = {"per_device_train_batch_size": 20}
    options: dict = {"train": train}
    plain = estimate_run(pipeline(tmp_path, str(directory), **options).prepare()).items
    options["train"] = {**train, "gradient_checkpointing": True}
    less = estimate_run(pipeline(tmp_path, str(directory), **options).prepare()).items
    assert less["activations"] < plain["activations"]


def test_several_processes_hold_gradients_twice(tmp_path, directory, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = tiny_config(train={"use_cpu": True})
    model = model_of()
    items = estimate_memory(model, batch_of(), config).items
    assert items["gradients between processes"] == sum(weight.nbytes for weight in model.parameters())


#: Large enough that activations are most of the process.
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
    given = json.dumps({"name": name, "plugins": [], **MEASURED[name]})
    told = {}
    for what in ("estimated", "measured"):
        command = [sys.executable, str(root / "benchmarks" / "memory.py"), what, given]
        # Blocks are given back when they are freed: what an old glibc keeps instead differs from run to run.
        variables = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=variables)
        assert done.returncode == 0, done.stderr
        told |= json.loads(done.stdout.splitlines()[-1])
    process = told["items"]["process"]
    assert told["peak"] > 1.4 * process
    assert told["total"] == pytest.approx(told["peak"], rel=0.2)


QUANTIZED = {
    "8 bits": {"load_in_8bit": True},
    "4 bits": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "4 bits, scales quantized": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
}


@pytest.mark.parametrize("how", QUANTIZED)
def test_a_base_to_be_quantized_is_counted_as_it_will_be(tmp_path, how):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    whole = model_of(hidden_size=256, intermediate_size=704, head_dim=64)
    whole.save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(**QUANTIZED[how])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings, dtype=torch.float32)
    states = [weight.quant_state for weight in loaded.parameters() if getattr(weight, "quant_state", None)]
    scales = sum(state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0) for state in states)
    held = scales + sum(value.nbytes for value in (*loaded.parameters(), *loaded.buffers()))
    for module in whole.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.requires_grad_(module is whole.get_output_embeddings())
    assert quantized_bytes(whole, settings.to_dict())[0] == pytest.approx(held, rel=0.01)


@pytest.mark.parametrize("how", QUANTIZED)
def test_a_quantized_model_is_traced_as_it_is(tmp_path, how):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model_of(hidden_size=256, intermediate_size=704, head_dim=64).save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(**QUANTIZED[how])
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings, dtype=torch.float32)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # or the first forward without gradients repacks the weights
    adapted, batch = with_lora(model).train(), batch_of()
    before = [value.clone() for value in adapted.parameters()]
    found = traced(adapted, batch).total
    assert all(torch.equal(one, two) for one, two in zip(before, adapted.parameters(), strict=True))
    assert found == pytest.approx(allocated(adapted, batch), rel=0.1)


def test_a_method_of_quantization_that_is_not_known_is_not_guessed():
    with pytest.raises(UnknownQuantizationError, match="hqq"):
        quantized_bytes(model_of(), {"quant_method": "hqq"})


def test_an_allocator_that_leaves_holes_is_counted(monkeypatch):
    config, model = tiny_config(train={"use_cpu": True}), model_of()
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    assert estimate_memory(model, batch_of(), config).items["holes between blocks"] > 0
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1048576")
    assert "holes between blocks" not in estimate_memory(model, batch_of(), config).items
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_")
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.41"))
    assert "holes between blocks" not in estimate_memory(model, batch_of(), config).items


def test_what_a_forward_keeps_on_its_modules_is_not_left_without_values():
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 10000.0}
    model = tiny_model("phi3", rope_parameters=rope, original_max_position_embeddings=16, max_position_embeddings=64)
    before = [dict(vars(module)) for module in model.modules()]
    with refused_before("5.21"):
        traced(model, batch_of())
    after = [vars(module) for module in model.modules()]
    assert all(one.keys() == two.keys() for one, two in zip(before, after, strict=True))
    assert all(one[key] is two[key] for one, two in zip(before, after, strict=True) for key in one)


def test_a_batch_without_padding_is_estimated_by_its_examples_and_not_as_one_long_row():
    model = tiny_model()
    ids = torch.randint(3, 300, (4, 64))
    labels = ids.clone()
    labels[:, 0] = -100
    rows = {"input_ids": ids, "labels": labels}
    flat = {name: value.reshape(1, -1) for name, value in rows.items()}
    flat |= {"position_ids": torch.arange(64).repeat(4)[None], "row_lengths": torch.tensor([64] * 4)}
    assert traced(model, flat).total == traced(model, rows).total
