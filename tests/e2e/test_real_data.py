"""A real data set and a real tokenizer: what the command line saves is what the pipeline trained."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sftkit import Pipeline

#: In alpaca rows the last occurrence of this is where the answer begins.
RESPONSE = "completion_only:response_template=### Response:"
PLUGINS = (RESPONSE, "packing", "peft:r=8")
TRAIN = {"per_device_train_batch_size": 2, "learning_rate": 1e-3, "logging_steps": 1, "seed": 1}
OVERRIDES = ("data.max_length=512", *(f"train.{key}={value}" for key, value in TRAIN.items()))
PROMPT = "### Instruction:\nAdd two numbers.\n\n### Response:"


@pytest.fixture(scope="module")
def base(real_data, tmp_path_factory):
    """A small Llama with random weights beside the Llama 2 tokenizer."""
    directory = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=32000, **sizes)).save_pretrained(directory)
    AutoTokenizer.from_pretrained(real_data / "llama2_tokenizer").save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def data(real_data, tmp_path_factory):
    """The first 300 rows of Code Alpaca."""
    path = tmp_path_factory.mktemp("data") / "code_alpaca.json"
    path.write_text(json.dumps(json.loads((real_data / "code_alpaca_2k.json").read_text())[:300]))
    return path


@pytest.fixture(scope="module")
def adapter(cli, base, data):
    """The directory of a LoRA run from the command line."""
    directory = data.parent / "adapter"
    flags = [item for name in PLUGINS for item in ("-p", name)]
    where = ("--model", base, "--data", data, "--output", directory)
    cli("run", *where, *flags, *OVERRIDES, "train.max_steps=6", cwd=data.parent)
    return directory


def run(model, data, output, plugins, steps):
    """The same run in this process."""
    train = {**TRAIN, "max_steps": steps, "output_dir": str(output)}
    return Pipeline(model=model, data={"train": str(data), "max_length": 512}, plugins=plugins, train=train).run()


def logits(model, tokenizer):
    with torch.no_grad():
        return model.eval()(**tokenizer(PROMPT, return_tensors="pt")).logits


def test_an_adapter_reloads_in_plain_transformers_and_peft_with_the_logits_of_training(base, data, tmp_path):
    result = run(str(base), data, tmp_path / "run", PLUGINS, steps=6)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    untrained = logits(AutoModelForCausalLM.from_pretrained(base), tokenizer)
    reloaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "run")
    assert torch.equal(logits(reloaded, tokenizer), logits(result.model, result.tokenizer))
    assert not torch.allclose(logits(reloaded, tokenizer), untrained)


def test_the_command_line_and_the_pipeline_train_the_same_adapter(base, data, adapter, tmp_path):
    """The seed decides on everything random, the adapter's first weights included."""
    torch.rand(7)  # other random numbers drawn before make no difference
    run(str(base), data, tmp_path / "run", PLUGINS, steps=6)
    expected = load_file(adapter / "adapter_model.safetensors")
    got = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert expected.keys() == got.keys()
    assert all(expected[name].equal(got[name]) for name in expected)


def test_only_the_adapter_is_saved(adapter):
    assert not (adapter / "model.safetensors").exists()
    assert all("lora_" in name for name in load_file(adapter / "adapter_model.safetensors"))
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 8


def test_only_what_follows_the_response_template_is_trained(real_data, data, adapter):
    """Recounted with the bare tokenizer: the tokens of all answers, and one end of text each."""
    counts = json.loads((adapter / "manifest.json").read_text())["data"]["train"]
    tokenizer = AutoTokenizer.from_pretrained(real_data / "llama2_tokenizer")
    rows = json.loads(data.read_text())
    answers = sum(len(tokenizer(row["output"], add_special_tokens=False)["input_ids"]) for row in rows)
    assert counts["trained tokens"] == pytest.approx(answers + 2 * len(rows), abs=2 * len(rows))
    assert counts["trained tokens"] < counts["tokens"]


@pytest.mark.slow
def test_a_fully_tuned_model_reloads_with_the_logits_of_training(base, data, tmp_path):
    result = run(str(base), data, tmp_path / "full", (RESPONSE, "packing"), steps=3)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "full")
    assert torch.equal(logits(reloaded, tokenizer), logits(result.model, result.tokenizer))
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "full" / "model.safetensors")
    assert before.keys() == after.keys()
    assert not any(before[name].equal(after[name]) for name in before if name.endswith("proj.weight"))


@pytest.mark.slow
def test_an_adapter_directory_as_the_model_trains_that_adapter_on(base, data, adapter, tmp_path):
    result = run(str(adapter), data, tmp_path / "more", PLUGINS[:2], steps=2)
    before = load_file(adapter / "adapter_model.safetensors")
    after = load_file(tmp_path / "more" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert not any(before[name].equal(after[name]) for name in before)
    assert all((before[name] - after[name]).abs().max() < 0.02 for name in before), "started from anew"
    base_weights = load_file(base / "model.safetensors")
    trained = {
        name.replace(".base_layer", ""): value for name, value in result.model.get_base_model().named_parameters()
    }
    assert all(trained[name].equal(value) for name, value in base_weights.items())
