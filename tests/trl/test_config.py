"""`SFTConfig`, `ModelConfig` and the parsers, as scripts of 2024 use them."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig
from transformers import HfArgumentParser, TrainingArguments

from sftkit_trl import (
    ModelConfig,
    SFTConfig,
    SFTScriptArguments,
    SftScriptArguments,
    TrlParser,
    get_kbit_device_map,
    get_peft_config,
    get_quantization_config,
)

DEFAULTS = {
    "dataset_text_field": None,
    "packing": False,
    "max_seq_length": None,
    "dataset_num_proc": None,
    "dataset_batch_size": 1000,
    "neftune_noise_alpha": None,
    "model_init_kwargs": None,
    "dataset_kwargs": None,
    "eval_packing": None,
    "num_of_sequences": 1024,
    "chars_per_token": 3.6,
    "use_liger": False,
}


def of(**options: Any) -> SFTConfig:
    return SFTConfig(output_dir="out", use_cpu=True, **options)


def test_it_is_a_training_arguments_with_the_defaults_of_trl() -> None:
    config = of()
    assert isinstance(config, TrainingArguments)
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize(
    ("old", "name", "value"),
    [
        ({"evaluation_strategy": "steps", "eval_steps": 3}, "eval_strategy", "steps"),
        ({"per_gpu_train_batch_size": 3}, "per_device_train_batch_size", 3),
        ({"per_gpu_eval_batch_size": 3}, "per_device_eval_batch_size", 3),
        ({"no_cuda": True}, "use_cpu", True),
        ({"group_by_length": True}, "train_sampling_strategy", "group_by_length"),
        ({"include_inputs_for_metrics": True}, "include_for_metrics", ["inputs"]),
        ({"adafactor": True}, "optim", "adafactor"),
        ({"optim": "adamw_hf"}, "optim", "adamw_torch"),
        ({"torchdynamo": "eager"}, "torch_compile_backend", "eager"),
        ({"push_to_hub_token": "t"}, "hub_token", "t"),
        ({"push_to_hub_model_id": "m"}, "hub_model_id", "m"),
        ({"push_to_hub_model_id": "m", "push_to_hub_organization": "us"}, "hub_model_id", "us/m"),
        ({"push_to_hub_organization": "us"}, "hub_model_id", "us/out"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_argument_of_2024_does_what_it_did(old, name, value) -> None:
    made = getattr(SFTConfig(output_dir="out", **old), name)
    assert getattr(made, "value", made) == value


@pytest.mark.parametrize("name", ["dispatch_batches", "split_batches"])
def test_what_moved_to_the_accelerator_gets_there(name) -> None:
    assert getattr(of(**{name: True}).accelerator_config, name) is True
    both = of(**{name: True}, accelerator_config={"even_batches": False}).accelerator_config
    assert (getattr(both, name), both.even_batches) == (True, False)


@pytest.mark.parametrize(("ratio", "steps"), [(0.1, 10), (0.0, 0)])
def test_warmup_ratio_is_a_share_of_the_steps(ratio, steps) -> None:
    assert of(warmup_ratio=ratio).get_warmup_steps(100) == steps


def test_a_directory_for_logs_is_where_tensorboard_writes(monkeypatch) -> None:
    monkeypatch.setitem(os.environ, "TENSORBOARD_LOGGING_DIR", "")
    monkeypatch.delitem(os.environ, "TENSORBOARD_LOGGING_DIR")
    of(logging_dir="logs")
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == "logs"


@pytest.mark.parametrize(
    "told",
    [
        {"overwrite_output_dir": True},
        {"save_safetensors": True},
        {"use_mps_device": False},
        {"include_tokens_per_second": True},
        {"half_precision_backend": "auto"},
        {"fp16_backend": "auto"},
        {"fp16_opt_level": "O1"},
        {"ray_scope": "last"},
    ],
    ids=lambda told: next(iter(told)),
)
def test_an_argument_that_asks_for_nothing_any_more_is_taken(told) -> None:
    ((name, value),) = told.items()
    assert getattr(of(**told), name) == value


@pytest.mark.parametrize(
    "asked", [{"save_safetensors": False}, {"half_precision_backend": "apex"}, {"fp16_backend": "apex"}]
)
def test_what_there_is_no_more_is_an_error(asked) -> None:
    with pytest.raises(ValueError, match=r"pickles|apex"):
        of(**asked)


def test_an_unknown_argument_is_an_error() -> None:
    with pytest.raises(TypeError, match="max_sequence_length"):
        of(max_sequence_length=3)


def test_old_names_do_not_come_back_when_the_configuration_is_copied() -> None:
    config = of(evaluation_strategy="steps", eval_steps=2, warmup_ratio=0.1)
    again = SFTConfig(**{f: getattr(config, f) for f in ("output_dir", "eval_strategy", "warmup_steps", "use_cpu")})
    assert (again.eval_strategy, again.warmup_steps) == (config.eval_strategy, config.warmup_steps)
    assert json.loads(config.to_json_string())["max_seq_length"] is None


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


def test_files_are_parsed(tmp_path) -> None:
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


def test_the_parser_takes_defaults_from_a_file_and_the_line_goes_before_it(tmp_path) -> None:
    path = written(
        tmp_path, dataset_name="d", max_seq_length=64, lora_r=4, lora_target_modules=["q", "v"], packing=True
    )
    parser = TrlParser((SFTScriptArguments, SFTConfig, ModelConfig))
    script, config, model = parser.parse_args_and_config(["--config", path, "--max_seq_length", "32"])
    assert (script.dataset_name, script.config) == ("d", path)
    assert (config.max_seq_length, config.packing, config.output_dir) == (32, True, "out")
    assert (model.lora_r, model.lora_target_modules) == (4, ["q", "v"])


def test_the_parser_reads_the_programs_own_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["sft.py", "--config", written(tmp_path, learning_rate=3e-4)])
    (config,) = TrlParser(SFTConfig).parse_args_and_config()
    assert config.learning_rate == 3e-4


def test_the_parser_sets_the_environment(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OF_A_TEST", "0")
    TrlParser(SFTConfig).parse_args_and_config(["--config", written(tmp_path, env={"OF_A_TEST": 1})])
    assert os.environ["OF_A_TEST"] == "1"


def test_a_key_of_the_file_that_is_no_argument_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match="max_seq_lenght"):
        TrlParser(SFTConfig).parse_args_and_config(["--config", written(tmp_path, max_seq_lenght=3)])


def test_arguments_of_nobody_can_be_returned(tmp_path) -> None:
    line = ["--config", written(tmp_path), "--further", "1"]
    config, rest = TrlParser(SFTConfig).parse_args_and_config(line, return_remaining_strings=True)
    assert (config.output_dir, rest) == ("out", ["--further", "1"])


def test_the_scripts_arguments_have_their_defaults() -> None:
    script = SFTScriptArguments()
    assert SftScriptArguments is SFTScriptArguments
    assert script.dataset_name == "timdettmers/openassistant-guanaco"
    assert (script.dataset_train_split, script.dataset_test_split) == ("train", "test")


def test_no_model_is_both_in_4_and_8_bits() -> None:
    with pytest.raises(ValueError, match="8 bit and 4 bit"):
        ModelConfig(load_in_4bit=True, load_in_8bit=True)


def test_one_target_is_a_pattern() -> None:
    assert ModelConfig(lora_target_modules=["all-linear"]).lora_target_modules == "all-linear"
    assert ModelConfig(lora_target_modules=["q", "v"]).lora_target_modules == ["q", "v"]


def test_an_adapter_is_configured_only_where_asked_for() -> None:
    assert get_peft_config(ModelConfig()) is None
    options = {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "lora_target_modules": ["q", "v"], "use_rslora": True}
    made = get_peft_config(ModelConfig(use_peft=True, lora_modules_to_save=["lm_head"], **options))
    assert isinstance(made, LoraConfig)
    assert (made.r, made.lora_alpha, made.lora_dropout, made.use_rslora) == (4, 8, 0.1, True)
    assert (set(made.target_modules), made.modules_to_save) == ({"q", "v"}, ["lm_head"])
    assert (made.task_type, made.bias) == ("CAUSAL_LM", "none")


def test_the_quantization_is_that_of_the_arguments() -> None:
    assert get_quantization_config(ModelConfig()) is None
    assert get_quantization_config(ModelConfig(load_in_8bit=True)).load_in_8bit
    asked = ModelConfig(load_in_4bit=True, torch_dtype="bfloat16", bnb_4bit_quant_type="fp4", use_bnb_nested_quant=True)
    made = get_quantization_config(asked)
    assert (made.bnb_4bit_compute_dtype, made.bnb_4bit_quant_type) == (torch.bfloat16, "fp4")
    assert made.bnb_4bit_use_double_quant


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_there_is_no_device_map() -> None:
    assert get_kbit_device_map() is None


def test_making_a_configuration_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of(max_seq_length=32, packing=True, evaluation_strategy="no")
