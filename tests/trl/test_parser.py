"""`HfArgumentParser` and `TrlParser` with the dataclasses of scripts."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from transformers import HfArgumentParser

from sftkit_trl import (
    ModelConfig,
    ScriptArguments,
    SFTConfig,
    SFTScriptArguments,
    SftScriptArguments,
    TrainingArguments,
    TrlParser,
)


@dataclass
class Script:
    """Arguments of a script."""

    model_name: str | None = field(default=None)
    use_peft: bool | None = field(default=False)


def test_a_command_line_is_parsed() -> None:
    line = "--model_name m --use_peft True --output_dir out --max_seq_length 64 --packing --learning_rate 1e-4 "
    line += "--evaluation_strategy steps --eval_steps 5 --warmup_ratio 0.03 --group_by_length True --report_to none "
    line += "--bf16 False --overwrite_output_dir True --no_cuda True --dataset_text_field text --use_liger False"
    script, config = HfArgumentParser((Script, SFTConfig)).parse_args_into_dataclasses(line.split())
    assert (script.model_name, script.use_peft) == ("m", True)
    assert (config.max_seq_length, config.packing, config.learning_rate) == (64, True, 1e-4)
    assert (config.eval_strategy.value, config.eval_steps, config.warmup_steps) == ("steps", 5, 0.03)
    assert (config.dataset_text_field, config.use_cpu) == ("text", True)


def test_json_and_yaml_files_are_parsed(tmp_path) -> None:
    values = {"output_dir": "out", "packing": True, "dataset_kwargs": {"append_concat_token": False}, "no_cuda": True}
    (tmp_path / "c.json").write_text(json.dumps(values))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    parser = HfArgumentParser(SFTConfig)
    (of_json,), (of_yaml,) = parser.parse_json_file(tmp_path / "c.json"), parser.parse_yaml_file(tmp_path / "c.yaml")
    for config in (of_json, of_yaml):
        assert (config.packing, config.dataset_kwargs) == (True, {"append_concat_token": False})


def written(tmp_path: Any, **values: Any) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"output_dir": "out", "use_cpu": True, **values}))
    return str(path)


def test_the_command_line_overrides_the_file(tmp_path) -> None:
    path = written(
        tmp_path, dataset_name="d", max_seq_length=64, lora_r=4, lora_target_modules=["q", "v"], packing=True
    )
    parser = TrlParser((SFTScriptArguments, SFTConfig, ModelConfig))
    script, config, model = parser.parse_args_and_config(["--config", path, "--max_seq_length", "32"])
    assert (script.dataset_name, script.config) == ("d", path)
    assert (config.max_seq_length, config.packing, config.output_dir) == (32, True, "out")
    assert (model.lora_r, model.lora_target_modules) == (4, ["q", "v"])


def test_the_parser_reads_the_programs_own_command_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["sft.py", "--config", written(tmp_path, learning_rate=3e-4)])
    (config,) = TrlParser(SFTConfig).parse_args_and_config()
    assert config.learning_rate == 3e-4


def test_config_may_be_joined_to_its_file_by_an_equals_sign(tmp_path) -> None:
    (tmp_path / "defaults.yaml").write_text("learning_rate: 2.0e-4\n")
    (args,) = TrlParser(SFTConfig).parse_args_and_config([f"--config={tmp_path / 'defaults.yaml'}", "--output_dir=x"])
    assert args.learning_rate == 2e-4


def test_the_key_env_sets_environment_variables(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OF_A_TEST", "0")
    TrlParser(SFTConfig).parse_args_and_config(["--config", written(tmp_path, env={"OF_A_TEST": 1})])
    assert os.environ["OF_A_TEST"] == "1"


def test_env_that_is_no_mapping_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match="`env` should map"):
        TrlParser(SFTConfig).parse_args_and_config(["--config", written(tmp_path, env="OF_A_TEST")])


def test_an_unknown_key_in_the_file_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match="max_seq_lenght"):
        TrlParser(SFTConfig).parse_args_and_config(["--config", written(tmp_path, max_seq_lenght=3)])


def test_unknown_keys_in_the_file_can_be_ignored(tmp_path) -> None:
    line = ["--config", written(tmp_path, mixer=3, packing=True)]
    (config,) = TrlParser(SFTConfig, ignore_extra_args=True).parse_args_and_config(line)
    assert config.packing is True
    assert not hasattr(config, "mixer")


def test_unknown_arguments_and_keys_can_be_returned(tmp_path) -> None:
    line = ["--config", written(tmp_path, mixer=3), "--further", "1"]
    config, rest = TrlParser(SFTConfig).parse_args_and_config(line, return_remaining_strings=True)
    assert (config.output_dir, rest) == ("out", ["--further", "1", "--mixer", "3"])


def test_a_required_argument_may_be_in_the_file(tmp_path) -> None:
    line = ["--config", written(tmp_path, dataset_name="d", learning_rate="2e-4")]
    script, config = TrlParser((ScriptArguments, SFTConfig)).parse_args_and_config(line)
    assert (script.dataset_name, config.learning_rate) == ("d", 2e-4)


def test_a_required_argument_that_is_nowhere_is_an_error(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        TrlParser((ScriptArguments, SFTConfig)).parse_args_and_config(["--config", written(tmp_path)])
    assert "required: --dataset_name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "name"), [(SFTScriptArguments, "timdettmers/openassistant-guanaco"), (ScriptArguments, "d")]
)
def test_script_arguments_have_the_defaults_of_trl(kind, name) -> None:
    script = kind() if kind is SFTScriptArguments else kind(dataset_name="d")
    splits = (script.dataset_train_split, script.dataset_test_split)
    assert (script.dataset_name, *splits, script.config) == (name, "train", "test", None)
    assert (script.gradient_checkpointing_use_reentrant, script.ignore_bias_buffers) == (False, False)


def test_script_arguments_of_trl_08_stand_beside_training_arguments() -> None:
    line = ["--output_dir", "out", "--packing", "--max_seq_length", "64", "--use_cpu", "--dataset_train_name", "sft"]
    parser = TrlParser((SftScriptArguments, TrainingArguments, ModelConfig))
    script, args, _ = parser.parse_args_and_config(line)
    assert (script.packing, script.max_seq_length, script.dataset_text_field) == (True, 64, None)
    assert (script.dataset_train_name, script.dataset_test_name, args.output_dir) == ("sft", "test", "out")
