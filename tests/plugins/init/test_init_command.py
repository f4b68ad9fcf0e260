"""`sftkit init` writes a configuration from questions or options, and never over a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sftkit import Pipeline
from sftkit.cli import app
from sftkit.errors import SftkitError
from sftkit_commands.init.look import billions, method_for

HERE = Path(__file__).parent


def init(*arguments, fails=False):
    """Run the command; its output, or its error."""
    done = CliRunner().invoke(app, ["init", *map(str, arguments)])
    if fails:
        assert isinstance(done.exception, SftkitError), done.output
        return str(done.exception)
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.output


def test_options_make_a_configuration_that_is_valid(workdir):
    output = init("--yes", "--model", "model", "--data", "chat.jsonl", "--memory", 0, "--method", "lora")
    values = yaml.safe_load((workdir / "sft.yaml").read_text())
    assert values["model"] == {"name": "model"}
    assert values["data"] == {"train": "chat.jsonl", "eval": 0.05, "max_length": 1024}
    assert values["plugins"] == {"peft": {"r": 16}}
    assert values["train"]["learning_rate"] == 2e-4
    assert Pipeline(config="sft.yaml").check() == ()
    assert "data: conversations: what the assistant writes is trained" in output
    assert "chat template of the tokenizer: ChatML" in output
    for command in ("check sft.yaml", "preview sft.yaml", "run sft.yaml", "chat runs/sft", "report runs/sft"):
        assert f"sftkit {command}" in output


@pytest.mark.parametrize(("file", "kind"), [
    ("alpaca.jsonl", "instructions (Alpaca): the output is trained"),
    ("pairs.jsonl", "prompts and completions: the completion is trained"),
    ("text.jsonl", "plain text: all of it is trained"),
    ("segments.jsonl", "segments: those labelled are trained"),
])  # fmt: skip
def test_it_says_which_format_the_data_has(file, kind, workdir):
    assert f"data: {kind}" in init("--yes", "--model", "model", "--data", file, "--memory", 0)


def test_conversations_get_a_template_if_the_tokenizer_has_none(workdir):
    output = init("--yes", "--model", "plain", "--data", "chat.jsonl", "--memory", 0, "--method", "full", "--eval", 0)
    values = yaml.safe_load((workdir / "sft.yaml").read_text())
    assert values["plugins"] == {"chatml": {}}
    assert "eval" not in values["data"]
    assert "eval_strategy" not in values["train"]
    assert "chat template of the tokenizer: none" in output
    assert Pipeline(config="sft.yaml").check() == ()


def test_a_gpu_is_used(workdir):
    init("--yes", "--model", "model", "--data", "chat.jsonl", "--memory", 24, "--method", "qlora", "--output", "out")
    values = yaml.safe_load((workdir / "sft.yaml").read_text())
    assert values["model"]["dtype"] == "bfloat16"
    assert values["train"]["bf16"] is True
    assert values["train"]["output_dir"] == "out"
    assert values["plugins"] == {"bitsandbytes": {"bits": 4}, "peft": {"r": 16}, "activations": {}}


def test_json_is_one_object(workdir):
    result = json.loads(init("--json", "--model", "model", "--data", "chat.jsonl", "--memory", 0))
    assert result["file"] == "sft.yaml"
    assert result["problems"] == []
    assert result["config"] == yaml.safe_load((workdir / "sft.yaml").read_text()) | {
        "plugins": result["config"]["plugins"]
    }


def test_a_file_is_replaced_only_with_force(workdir):
    (workdir / "sft.yaml").write_text("mine")
    arguments = ("--yes", "--model", "model", "--data", "chat.jsonl", "--memory", 0)
    assert "sft.yaml: the file exists -> give another name, or replace it with --force" in init(*arguments, fails=True)
    assert (workdir / "sft.yaml").read_text() == "mine"
    init("other.yaml", *arguments)
    init(*arguments, "--force")
    assert (workdir / "sft.yaml").read_text() == (workdir / "other.yaml").read_text()


def test_a_file_beside_it_is_not_replaced_either(workdir):
    (workdir / "sft_prompts.py").write_text("mine")
    source = HERE / "axolotl" / "06_user_defined_prompt.yml"
    assert "sft_prompts.py: the file exists" in init("--from", source, fails=True)
    assert not (workdir / "sft.yaml").exists()
    assert (workdir / "sft_prompts.py").read_text() == "mine"


def test_without_a_terminal_it_says_what_to_give(workdir):
    message = init(fails=True)
    assert "there is no terminal to ask questions in" in message
    for option in ("--yes", "--model", "--data", "--method", "--memory", "--eval", "--output"):
        assert option in message
    assert not (workdir / "sft.yaml").exists()


def test_data_must_be_named_if_it_is_not_clear(workdir):
    assert "add --data FILE" in init("--yes", "--model", "model", fails=True)


@pytest.mark.parametrize(("arguments", "message"), [
    (("--method", "qlra"), "did you mean 'qlora'?"),
    (("--eval", "1.5"), "give a fraction such as 0.05"),
    (("--memory", "-1"), "a GPU cannot have less than 0 GB"),
    (("--format", "trl"), "--format needs --from"),
    (("--from", "x.yml", "--model", "m"), "--model cannot be given with --from"),
    (("--from", "none.yml"), "cannot read the file"),
    (("missing/sft.yaml",), "there is no such directory"),
])  # fmt: skip
def test_wrong_options_are_errors(arguments, message, workdir):
    found = init(*arguments, fails=True)
    assert message in found, found


def test_questions_are_answered_by_enter(workdir, monkeypatch):
    (workdir / "chats").unlink()
    monkeypatch.setattr("sftkit_commands.init.questions.require_terminal", lambda: None)
    answers = ["model", "chat.jsonl", "0", "", "", "", "n"]
    done = CliRunner().invoke(app, ["init"], input="\n".join(answers) + "\n")
    assert done.exit_code == 0, done.output
    values = yaml.safe_load((workdir / "sft.yaml").read_text())
    assert values["data"]["eval"] == 0.05
    assert values["train"]["output_dir"] == "runs/sft"
    assert "plugins" not in values
    assert "Run `sftkit check sft.yaml` now?" in done.output


def test_a_wrong_answer_is_asked_again_with_the_reason(workdir, monkeypatch):
    monkeypatch.setattr("sftkit_commands.init.questions.require_terminal", lambda: None)
    answers = ["model", "chat.json", "chat.jsonl", "much", "0", "lor", "LoRA", "5", "0", "", "n"]
    done = CliRunner().invoke(app, ["init"], input="\n".join(answers) + "\n")
    assert done.exit_code == 0, done.output
    reasons = ("did you mean 'chat.jsonl'", "not a number of GB", "did you mean 'lora'", "a fraction such as 0.05")
    for text in ("data files here: alpaca.jsonl, ", *reasons):
        assert text in done.output
    assert "peft" in yaml.safe_load((workdir / "sft.yaml").read_text())["plugins"]


def test_a_translation_prints_its_lists(workdir):
    output = init("--from", HERE / "axolotl" / "07_several_datasets_liger.yml")
    for text in (
        "Translated from Axolotl",
        "Needs no counterpart",
        "Not translated",
        "optimizer: muon",
        "written: sft.yaml",
    ):
        assert text in output
    assert "to fix: plugin liger: liger needs a GPU" in output


def test_a_translation_as_json_has_each_key_in_one_list(workdir):
    source = HERE / "axolotl" / "09_sharegpt_legacy.yml"
    result = json.loads(init("--from", source, "--json"))
    assert [item["key"] for item in result["unknown"]] == ["not_a_key_of_axolotl"]
    assert {"key": "eval_max_new_tokens", "value": "128"}.items() <= result["lost"][0].items()
    assert "train.truncation" not in result["defaults"]
    assert result["defaults"]["data.truncation"] == "drop"


@pytest.mark.parametrize(("text", "suffix", "message"), [
    ("model: x\ndata: y\n", ".yaml", "it is a configuration of sftkit already"),
    ("a: 1\n", ".yaml", "--format axolotl | llamafactory | trl"),
    ("- 1\n", ".yaml", "the file holds no keys and values"),
    ("a: [\n", ".yaml", "not valid"),
    ("base_model: m\nmicro_batch_size: 1\nrl: dpo\n", ".yml", "rl: dpo is no supervised fine-tuning"),
    ("stage: kto\ntemplate: x\ncutoff_len: 8\n", ".yaml", "stage: kto is no supervised fine-tuning"),
    ("base_model: m\nmicro_batch_size: many\n", ".yml", "is not of the type that its key takes"),
])  # fmt: skip
def test_files_that_cannot_be_translated_say_why(text, suffix, message, workdir):
    (workdir / f"peer{suffix}").write_text(text)
    assert message in init("--from", f"peer{suffix}", fails=True)
    assert not (workdir / "sft.yaml").exists()


def test_a_command_line_alone_can_be_translated(workdir):
    (workdir / "train.txt").write_text("trl sft --model_name_or_path model --dataset_name chats --learning_rate 1e-4")
    init("--from", "train.txt", "--format", "trl")
    assert yaml.safe_load((workdir / "sft.yaml").read_text())["train"]["learning_rate"] == 1e-4


def test_a_file_for_the_gpu_of_another_machine_says_so(workdir, monkeypatch):
    monkeypatch.setattr("sftkit_commands.init.look.gpu_memory", lambda: 0.0)
    arguments = ("--model", "model", "--data", "chat.jsonl", "--memory", 24)
    printed = " ".join(init("--yes", *arguments).split())
    assert "the file is for a machine with a GPU of 24 GB, and this one has none: run `sftkit check" in printed
    assert json.loads(init("--json", "--force", *arguments))["elsewhere"].startswith("the file is for a machine")
    assert not json.loads(init("--json", "--force", *arguments[:-1], 0))["elsewhere"]


def test_the_method_fits_the_memory_of_the_gpu():
    assert billions("Qwen/Qwen3-0.6B") == 0.6
    assert billions("HuggingFaceTB/SmolLM2-135M-Instruct") == 0.135
    assert billions("gpt2") is None
    assert [method_for(7, memory) for memory in (0, 12, 24, 160)] == ["lora", "qlora", "lora", "full"]


@pytest.mark.slow
def test_it_asks_in_a_terminal_of_60_columns(workdir):
    import pexpect

    child = pexpect.spawn(sys.executable, ["-m", "sftkit", "init"], dimensions=(40, 60), encoding="utf-8", timeout=120)
    shown = ""
    for question, answer in (("Model", "model"), ("Data", "chat.jsonl"), ("GPU memory", "0"), ("Train:", "lora")):
        child.expect(question)
        shown += child.before
        child.sendline(answer)
    for question in ("Share", "Run directory"):
        child.expect(question)
        shown += child.before
        child.sendline("")
    child.expect("now\\?")
    shown += child.before
    child.sendline("n")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "what the assistant writes is trained" in shown
    assert (workdir / "sft.yaml").exists()
