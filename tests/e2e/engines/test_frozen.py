"""Frozen weights and layers that change, with several processes."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from sftkit.testing import tiny_conversations, tiny_model, tiny_tokenizer
from sftkit.testing.processes import start_group, warm_processes

COMMON = ["train.use_cpu=true", "train.lr_scheduler_type=constant", "train.learning_rate=0.01", "train.logging_steps=1"]
COMMON += ["--model", "model", "--data", "rows.jsonl", "train.max_steps=4", "train.save_strategy=steps"]
COMMON += ["train.save_steps=1", "train.weight_decay=0.5"]
LISA = ["-p", "lisa:layers=1,interval=2"]
SPECTRUM = ["-p", "freeze:spectrum=0.5"]
CHECKPOINTING = ["train.gradient_checkpointing=true", "train.ddp_find_unused_parameters=true"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("frozen")
    tiny_model(num_hidden_layers=4).save_pretrained(path / "model")
    tiny_tokenizer().save_pretrained(path / "model")
    rows = [{"text": row["messages"][0]["content"]} for row in tiny_conversations(32)]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(place):
    context = warm_processes()

    def start(name, size, *options):
        batch = f"train.per_device_train_batch_size={4 // size}"
        arguments = ["run", *COMMON, batch, *options, "-o", name]
        with start_group(context, arguments, size, cwd=place, printed=place / f"{name}-printed") as group:
            codes = group.wait()
        assert set(codes) == {0}, "\n".join(group.outputs)
        return load_file(place / name / "model.safetensors"), json.loads((place / name / "manifest.json").read_text())

    return start


def differs(one, other):
    return max(float((weight - other[name]).abs().max()) for name, weight in one.items())


@pytest.mark.parametrize("options", [[], CHECKPOINTING, ["train.gradient_accumulation_steps=2"]], ids=str)
def test_two_processes_draw_the_same_layers_as_one(run, options):
    name = "lisa" + str(len(options)) + str(options[:1])[-6:-3]
    one, _ = run(f"{name}-one", 1, *LISA, *options)
    two, _ = run(f"{name}-two", 2, *LISA, *options)
    assert differs(one, two) < 1e-4


def test_a_choice_is_made_in_one_process_for_all(run):
    one, manifest = run("spectrum-one", 1, *SPECTRUM)
    two, other = run("spectrum-two", 2, *SPECTRUM)
    assert manifest["choices"] == other["choices"] != {}
    assert differs(one, two) < 1e-4


ENGINES = {
    "spectrum": ["fsdp", "deepspeed:stage=2", "tensor_parallel:size=2"],
    "patterns=[embed_tokens,layers.0]": ["fsdp", "deepspeed:stage=2", "deepspeed:stage=3", "tensor_parallel:size=2"],
}


@pytest.mark.parametrize(("option", "engine"), [(option, each) for option, known in ENGINES.items() for each in known])
def test_engines_train_the_chosen_weights_alone(run, place, option, engine):
    if engine.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    freeze, batch = ["-p", f"freeze:{option}{'=0.5' * (option == 'spectrum')}"], []
    if engine.startswith("tensor"):  # both processes have the same rows
        batch = ["train.per_device_train_batch_size=4"]
    name = f"{engine[:4]}{engine[-1]}-{option[:8]}"
    one, _ = run(f"{name}-one", 1, *freeze)
    two, _ = run(f"{name}-two", 2, *freeze, "-p", engine, *batch)
    before = load_file(place / "model" / "model.safetensors")
    same = [weight for weight in before if one[weight].equal(before[weight])]
    assert same
    assert all(two[weight].equal(before[weight]) for weight in same)
    assert differs(one, two) < 1e-3


def test_spectrum_needs_whole_weights(place):
    pytest.importorskip("deepspeed")
    arguments = ["run", *COMMON, *SPECTRUM, "-p", "deepspeed:stage=3", "-o", "refused"]
    with start_group(warm_processes(), arguments, 2, cwd=place, printed=place / "refused-printed") as group:
        codes = group.wait()
    assert 0 not in codes
    assert "Spectrum needs whole ones" in "".join(group.outputs)
