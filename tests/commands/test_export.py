"""``sftkit export``: what is written computes the same as what was trained, or is refused and leaves nothing."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftkit import Pipeline, Plugin, dataclass, hookimpl
from sftkit.api import ConfigError, RunError, load_trained
from sftkit.testing import tiny_conversations, tiny_model, tiny_tokenizer
from sftkit_commands.export.job import Wanted, export
from sftkit_commands.export.proof import compare

IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A directory with data, a base model, and one whose embeddings are tied."""
    folder = tmp_path_factory.mktemp("export")
    for name, rows in (("train", tiny_conversations(12)), ("eval", tiny_conversations(4, first=50))):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": f"{n} is a number"}) for n in range(8)))
    for name, tied in (("base", False), ("tied", True)):
        tiny_model(tie_word_embeddings=tied).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    return folder


def train(places, name, base, plugins, data="train.jsonl", **options):
    settings = {"output_dir": str(places / name), "max_steps": 3, "learning_rate": 0.05, "save_strategy": "no"}
    held_out = {"eval": str(places / "eval.jsonl")} if data == "train.jsonl" else {}
    data = str(places / data) if isinstance(data, str) else data
    return Pipeline(str(places / base), data, plugins=plugins, train=settings, **held_out, **options).run()


@pytest.fixture(scope="module")
def run(places):
    """A run with LoRA and new tokens, whose rows embeddings and head share."""
    return train(places, "lora", "tied", ["chatml", "peft:r=4"])


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.slow
def test_an_export_of_a_streamed_run_compares_on_rows_of_its_stream(places, tmp_path):
    made = train(
        places,
        "streamed",
        "base",
        ["chatml", "peft:r=4"],
        data={"train": str(places / "train.jsonl"), "streaming": True},
    )
    report, _ = export(Wanted(str(made.directory), tmp_path / "out", merge=True))
    assert "training rows of the run" in report.rows


def test_a_merged_model_with_new_tokens_is_the_trained_one_in_plain_transformers(run, tmp_path):
    report, sizes = export(Wanted(str(run.directory), tmp_path / "out", merge=True))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")

    assert type(merged).__name__ == "LlamaForCausalLM"
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    torch.testing.assert_close(logits(merged), logits(run.model), rtol=0, atol=1e-5)
    assert "<|im_start|>" in tokenizer.get_vocab()
    assert tokenizer.chat_template == run.tokenizer.chat_template
    assert report.rows == "4 held-out and 12 training rows of the run"
    assert report.proof["written"].agreement == 1
    assert {"model.safetensors", "README.md", "chat_template.jinja"} <= sizes.keys()


METHODS = {
    "dora": ("base", {"options": {"use_dora": True}}),
    "rslora": ("base", {"options": {"use_rslora": True}}),
    "modules_to_save": ("base", {"options": {"modules_to_save": ["embed_tokens", "lm_head"]}}),
    "ia3": ("base", {"method": "ia3"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_other_adapters_are_merged_exactly(name, places, tmp_path):
    base, options = METHODS[name]
    trained = train(places, name, base, ["chatml", {"peft": options}])
    report, _ = export(Wanted(str(trained.directory), tmp_path / "out", merge=True))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), logits(trained.model), rtol=0, atol=1e-5)
    assert report.proof["written"].relative < 1e-4


@pytest.mark.slow
def test_a_head_that_was_trained_alone_is_untied_from_the_embeddings(places, tmp_path):
    plugins = [{"peft": {"options": {"modules_to_save": ["lm_head"]}}}]
    trained = train(places, "head", "tied", plugins, data="text.jsonl")
    export(Wanted(str(trained.directory), tmp_path / "out", merge=True))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not merged.config.tie_word_embeddings
    torch.testing.assert_close(logits(merged), logits(trained.model), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_prompt_cannot_be_merged(places, tmp_path):
    plugins = [{"peft": {"method": "prompt_tuning", "options": {"num_virtual_tokens": 4}}}]
    trained = train(places, "prompt", "base", plugins, data="text.jsonl")
    with pytest.raises(ConfigError, match="PROMPT_TUNING cannot be merged"):
        export(Wanted(str(trained.directory), tmp_path / "out", merge=True))
    assert not list(tmp_path.iterdir())
    again = train(places, "prompt-again", "prompt", [], data="text.jsonl")
    first, second = (
        load_file(run.directory / "adapter_model.safetensors")["prompt_embeddings"] for run in (trained, again)
    )
    assert 0 < (first - second).abs().max() < 0.5  # it goes on from the prompt that was saved


@pytest.mark.slow
def test_a_quantized_model_is_compared_with_the_merged_one(places, tmp_path):
    if not all(map(importlib.util.find_spec, ("optimum", "gptqmodel"))):
        pytest.skip("needs the extra gptq")
    tiny_model(hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(places / "even")
    tiny_tokenizer().save_pretrained(places / "even")
    trained = train(places, "gptq", "even", ["chatml", "peft:r=4"])
    quantize = "gptq:group_size=32,rows=8"
    report, sizes = export(Wanted(str(trained.directory), tmp_path / "out", quantize=quantize))
    assert report.kind == "quantized"
    assert report.proof["written"].relative < 1e-4 < report.proof["quantized"].relative < 1
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["quantization_config"]["bits"] == 4
    assert not {"calibration.json", "quantize.log", "logits.safetensors"} & sizes.keys()


@pytest.mark.slow
def test_a_run_on_a_quantized_base_is_merged_into_the_unquantized_one(places, tmp_path):
    pytest.importorskip("bitsandbytes")
    tiny_model(hidden_size=64, head_dim=16).save_pretrained(places / "wide")  # not narrower than a block of scales
    tiny_tokenizer().save_pretrained(places / "wide")
    trained = train(places, "qlora", "wide", ["chatml", "peft:r=4", "bitsandbytes"])
    report, _ = export(Wanted(str(trained.directory), tmp_path / "out", merge=True))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    unquantized = load_trained(trained.directory, dtype="float32", quantized=False).model
    torch.testing.assert_close(logits(merged), logits(unquantized), rtol=0, atol=1e-5)
    assert report.proof["written"].relative < 1e-4 < report.proof["quantized base"].relative


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_a_dtype_is_that_of_the_file_and_within_its_tolerance(dtype, run, tmp_path):
    report, _ = export(Wanted(str(run.directory), tmp_path / "out", merge=True, dtype=dtype))
    assert str(AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype) == f"torch.{dtype}"
    assert report.proof["merged"].relative < 1e-4 < report.proof["written"].relative < 0.4


@dataclass(frozen=True, kw_only=True)
class Wrong(Plugin):
    """Makes one merged matrix 5 % larger."""

    @hookimpl(wrapper=True)
    def merge_adapter(self):
        model = yield
        with torch.no_grad():
            model.model.layers[0].self_attn.o_proj.weight.mul_(1.05)
        return model


def test_a_merge_that_computes_something_else_is_refused_and_leaves_nothing(run, tmp_path):
    with pytest.raises(RunError, match=r"differs from the model with its adapter: .* standard deviations"):
        export(Wanted(str(run.directory), tmp_path / "out", merge=True, plugins=[Wrong()]))
    assert not list(tmp_path.iterdir())


def test_an_adapter_is_exported_alone(run, tmp_path):
    report, sizes = export(Wanted(str(run.directory), tmp_path / "out"))
    for name in ("adapter_model.safetensors", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (run.directory / name).read_bytes()
    assert report.kind == "adapter"
    assert not {"manifest.json", "log.jsonl", "training_args.bin"} & sizes.keys()


@pytest.mark.slow
def test_a_model_that_was_trained_in_full_is_exported_with_its_weights(places, tmp_path):
    trained = train(places, "full", "base", ["chatml"])
    report, sizes = export(Wanted(str(trained.directory), tmp_path / "out", dtype="bfloat16"))
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(written.lm_head.weight, trained.model.lm_head.weight.to(torch.bfloat16))
    assert report.kind == "model"
    assert not {"manifest.json", "log.jsonl"} & sizes.keys()


def test_the_card_states_the_run_and_no_path_of_this_machine(run, places, tmp_path):
    export(Wanted(str(run.directory), tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for fact in ("library_name: peft", "adapter for `tied`", '"train.jsonl"', "| learning_rate | 0.05 |", "| chatml |"):
        assert fact in card, fact
    assert "AutoPeftModelForCausalLM" in card
    assert str(places) not in card
    assert str(tmp_path) not in card


def moved(run, directory, **changes):
    """A copy of a run whose data is elsewhere."""
    shutil.copytree(run.directory, directory)
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    manifest["config"]["data"].update(train=str(directory / "gone.jsonl"), eval=None)
    (directory / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return str(directory)


@pytest.mark.slow
def test_without_the_data_of_the_run_other_rows_are_named_or_read_from_its_samples(run, places, tmp_path):
    wanted = Wanted(moved(run, tmp_path / "run"), tmp_path / "out", merge=True)
    with pytest.raises(ConfigError, match=r"cannot be prepared again: .*gone\.jsonl.* -> name some with --data"):
        export(wanted)
    report, _ = export(replace(wanted, data=str(places / "eval.jsonl")))
    assert report.rows == "4 rows of --data"
    row = {"prompt": "<|im_start|>user\nWhat", "reference": "", "completions": [{"step": 3, "text": " is it?"}]}
    (tmp_path / "run" / "samples.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    report, _ = export(replace(wanted, to=tmp_path / "sampled"))
    assert report.rows == "1 rows of samples.jsonl"
    assert "cannot be prepared again" in report.notes[0]


REFUSED = {
    "there is nothing to merge": {"run": "base", "merge": True},
    "there is no such directory": {"run": "nowhere", "merge": True},
    "add --merge": {"dtype": "float16"},
    "add --gguf": {"gguf_type": "q8_0"},
    "use --gguf-type q8_0": {"gguf": True, "quantize": "gptq"},
    "plugin peft quantizes no saved models -> use one of: gptq": {"quantize": "peft"},
    "add --push-to-hub NAME": {"public": True},
}


@pytest.mark.parametrize("message", REFUSED)
def test_options_that_contradict_are_refused_at_once(message, run, places, tmp_path):
    options = {"run": str(run.directory), **REFUSED[message]}
    if options["run"] == "base":
        options["run"] = str(places / "base")
    with pytest.raises(ConfigError, match=message):
        export(Wanted(to=tmp_path / "out", **options))
    assert not list(tmp_path.iterdir())


def test_a_directory_with_something_in_it_is_kept(run, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"--to: the directory .* is not empty"):
        export(Wanted(str(run.directory), tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_the_command_prints_one_object(run, tmp_path, in_process):
    code, printed = in_process("export", run.directory, "--to", tmp_path / "out", "--json")
    (line,) = [line for line in printed.splitlines() if line.startswith("{")]
    found = json.loads(line)
    assert (code, found["kind"]) == (0, "adapter")
    assert found["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    code, printed = in_process("export", run.directory, "--to", tmp_path / "out")
    assert code == 2
    assert "error: --to" in printed


def test_models_are_compared_by_their_logits_and_next_tokens():
    ours = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
    found = compare([ours], [ours + torch.tensor([[0.0, 0.0], [0.0, 3.0]])])
    assert (found.difference, found.relative, found.agreement, found.positions) == (3.0, 3.0, 0.5, 2)
    assert compare([ours], [ours * math.nan]).difference > 1e30
