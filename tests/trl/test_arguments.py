"""`TrainingArguments` and `SFTConfig`: defaults, arguments that scripts of 2024 pass, copies and files."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import warnings
from typing import Any

import pytest
import transformers
from transformers import HfArgumentParser

from sftkit_trl import SFTConfig, TrainingArguments

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


#: Arguments of `TrainingArguments` in transformers 4.45 that transformers 5 does not have, with their defaults.
OF_2024 = {
    **dict.fromkeys(("overwrite_output_dir", "no_cuda", "use_mps_device", "jit_mode_eval", "use_ipex"), False),
    **dict.fromkeys(("adafactor", "group_by_length", "include_inputs_for_metrics", "tpu_metrics_debug"), False),
    **dict.fromkeys(("use_legacy_prediction_loop", "include_tokens_per_second"), False),
    **{"save_safetensors": True, "warmup_ratio": 0.0, "past_index": -1, "fsdp_min_num_params": 0},
    **dict.fromkeys(("evaluation_strategy", "per_gpu_train_batch_size", "per_gpu_eval_batch_size", "logging_dir")),
    **dict.fromkeys(("push_to_hub_token", "push_to_hub_model_id", "push_to_hub_organization", "tpu_num_cores")),
    **dict.fromkeys(("torchdynamo", "dispatch_batches", "split_batches", "fsdp_transformer_layer_cls_to_wrap")),
    **dict.fromkeys(("half_precision_backend", "fp16_backend", "fp16_opt_level", "ray_scope", "mp_parameters")),
}


def of(**options: Any) -> SFTConfig:
    return SFTConfig(output_dir="out", use_cpu=True, **options)


def test_sft_config_has_the_defaults_of_trl() -> None:
    config = of()
    assert isinstance(config, transformers.TrainingArguments)
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("kind", [TrainingArguments, SFTConfig])
def test_arguments_of_2024_have_their_defaults_of_then(kind) -> None:
    made = kind(output_dir="out", use_cpu=True)
    assert {name: getattr(made, name) for name in OF_2024} == OF_2024


def test_training_arguments_have_no_field_of_sft_config() -> None:
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert names & set(DEFAULTS) == {"neftune_noise_alpha"}  # which transformers has too
    assert names >= {field.name for field in dataclasses.fields(transformers.TrainingArguments)} | set(OF_2024)


@dataclasses.dataclass
class OfScript:
    """Arguments of a script, some of which `SFTConfig` has too."""

    model_name: str | None = None
    max_seq_length: int = 512
    packing: bool = False
    use_liger: bool = False


def test_training_arguments_are_parsed_beside_fields_of_a_script() -> None:
    line = "--output_dir out --max_seq_length 64 --packing --overwrite_output_dir --group_by_length --warmup_ratio 0.1 "
    line += "--evaluation_strategy steps --eval_steps 2 --no_cuda --logging_dir logs --model_name m"
    script, args = HfArgumentParser((OfScript, TrainingArguments)).parse_args_into_dataclasses(line.split())
    assert (script.model_name, script.max_seq_length, script.packing) == ("m", 64, True)
    assert (args.overwrite_output_dir, args.use_cpu, args.train_sampling_strategy) == (True, True, "group_by_length")
    assert (args.eval_strategy, args.warmup_steps) == ("steps", 0.1)


def test_sft_config_is_made_from_all_fields_of_training_arguments() -> None:
    old = {
        "include_inputs_for_metrics": True,
        "push_to_hub_organization": "us",
        "warmup_ratio": 0.1,
        "optim": "adamw_hf",
    }
    args = TrainingArguments(output_dir="out", use_cpu=True, group_by_length=True, dispatch_batches=False, **old)
    shared = {field.name: getattr(args, field.name) for field in dataclasses.fields(args) if field.init}
    config = SFTConfig(**shared, packing=True)
    for name in ("include_for_metrics", "hub_model_id", "warmup_steps", "optim", "train_sampling_strategy"):
        assert getattr(config, name) == getattr(args, name)
    assert (config.include_for_metrics, config.hub_model_id) == (["inputs"], "us/out")


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
def test_an_argument_of_2024_sets_the_one_that_replaced_it(old, name, value) -> None:
    made = getattr(SFTConfig(output_dir="out", **old), name)
    assert getattr(made, "value", made) == value


@pytest.mark.parametrize("name", ["dispatch_batches", "split_batches"])
def test_batch_options_move_to_the_accelerator_config(name) -> None:
    assert getattr(of(**{name: True}).accelerator_config, name) is True
    both = of(**{name: True}, accelerator_config={"even_batches": False}).accelerator_config
    assert (getattr(both, name), both.even_batches) == (True, False)


@pytest.mark.parametrize(("ratio", "steps"), [(0.1, 10), (0.0, 0)])
def test_warmup_ratio_is_a_share_of_the_steps(ratio, steps) -> None:
    assert of(warmup_ratio=ratio).get_warmup_steps(100) == steps


@pytest.mark.parametrize(("more", "steps"), [({"warmup_steps": 100}, 100), ({}, 0.1)])
def test_warmup_steps_override_the_ratio(more, steps) -> None:
    config = SFTConfig(output_dir="x", warmup_ratio=0.1, **more)
    assert (config.warmup_steps, config.warmup_ratio) == (steps, 0.1)


def test_a_warmup_ratio_of_one_covers_all_steps() -> None:
    assert SFTConfig(output_dir="x", warmup_ratio=1.0).get_warmup_steps(50) == 50


def test_logging_dir_sets_the_directory_of_tensorboard(monkeypatch) -> None:
    monkeypatch.setitem(os.environ, "TENSORBOARD_LOGGING_DIR", "")
    monkeypatch.delitem(os.environ, "TENSORBOARD_LOGGING_DIR")
    of(logging_dir="logs")
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == "logs"


@pytest.mark.parametrize(
    "argument",
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
    ids=lambda argument: next(iter(argument)),
)
def test_an_argument_without_effect_is_accepted(argument) -> None:
    ((name, value),) = argument.items()
    assert getattr(of(**argument), name) == value


@pytest.mark.parametrize(
    "asked",
    [
        {"save_safetensors": False},
        {"half_precision_backend": "apex"},
        {"fp16_backend": "apex"},
        {"tpu_num_cores": 8},
        {"tpu_metrics_debug": True},
        {"mp_parameters": "x"},
        {"jit_mode_eval": True},
        {"use_ipex": True},
        {"past_index": 1},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_an_argument_whose_feature_is_gone_is_an_error(asked) -> None:
    (name,) = asked
    with pytest.raises(ValueError, match=f"{'apex' if 'backend' in name else name}.*Drop"):
        of(**asked)


def test_an_unknown_argument_is_an_error() -> None:
    with pytest.raises(TypeError, match="max_sequence_length"):
        of(max_sequence_length=3)


def test_a_copied_configuration_does_not_set_old_names_again() -> None:
    config = of(evaluation_strategy="steps", eval_steps=2, warmup_ratio=0.1)
    again = SFTConfig(**{f: getattr(config, f) for f in ("output_dir", "eval_strategy", "warmup_steps", "use_cpu")})
    assert (again.eval_strategy, again.warmup_steps) == (config.eval_strategy, config.warmup_steps)
    assert json.loads(config.to_json_string())["max_seq_length"] is None


def test_the_configuration_can_be_copied_changed_and_pickled(config) -> None:
    args = config(packing=True, evaluation_strategy="steps", eval_steps=3)
    for copied in (
        copy.deepcopy(args),
        pickle.loads(pickle.dumps(args)),
        dataclasses.replace(args),
        SFTConfig(**args.to_dict()),
    ):
        assert (copied.packing, copied.max_seq_length, copied.eval_strategy) == (True, 32, args.eval_strategy)
    args.set_training(batch_size=3, num_epochs=1).set_save("no").set_logging(steps=1)
    assert (args.per_device_train_batch_size, args.packing) == (3, True)


def test_making_a_configuration_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of(max_seq_length=32, packing=True, evaluation_strategy="no")
