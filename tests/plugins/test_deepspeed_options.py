"""Options of the plugin deepspeed, and what the section `train` and accelerate's variables may not ask for."""

from __future__ import annotations

import json

import pytest

from sftkit import ConfigError, Pipeline
from sftkit.errors import RunError
from sftkit.run.accelerated import accelerate_problems

pytest.importorskip("deepspeed")


def problems(tmp_path, options, train=None, **sections):
    values = {"use_cpu": True, "output_dir": str(tmp_path / "run"), **(train or {})}
    config = {"model": "demo", "data": "demo", "train": values, "plugins": {"deepspeed": options}, **sections}
    return [str(problem) for problem in Pipeline(config=config).check()]


REFUSED = {
    "optimizer": ({"config": {"optimizer": {"type": "AdamW"}}}, {}, "section optimizer"),
    "scheduler": ({"config": {"scheduler": {"type": "WarmupLR"}}}, {}, "section scheduler"),
    "clipping": ({"config": {"gradient_clipping": 0.5}}, {}, "train.max_grad_norm is 1.0"),
    "rows": ({"config": {"train_micro_batch_size_per_gpu": 3}}, {}, "train.per_device_train_batch_size is 8"),
    "steps": ({"config": {"gradient_accumulation_steps": 3}}, {}, "train.gradient_accumulation_steps is 1"),
    "batch": ({"config": {"train_batch_size": 3}}, {}, "train_batch_size is 3"),
    "precision": ({"config": {"bf16": {"enabled": True}}}, {}, "train.bf16 is False"),
    "stage": ({"stage": 3, "config": {"zero_optimization": {"stage": 2}}}, {}, "stage is 3"),
    "no stage": ({"config": {"zero_optimization": {"stage": 7}}}, {}, "is not 1, 2 or 3"),
    "offload": ({"offload": "all"}, {}, "keeps all weights"),
    "two offloads": (
        {"offload": "optimizer", "config": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}},
        {},
        "says what is offloaded",
    ),
    "no file": ({"config": "nowhere.json"}, {}, "No such file"),
    "no steps": ({}, {"max_steps": 0}, "without steps"),
    "matrices": ({}, {"optim": "adafactor"}, "flattens the weights"),
    "no state for the best model": (
        {},
        {"save_only_model": True, "load_best_model_at_end": True},
        "the best model is loaded from the shards",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_contradiction_is_refused_and_both_sides_are_named(tmp_path, name):
    options, train, what = REFUSED[name]
    found = problems(
        tmp_path, options, train, **({"data": {"train": "demo", "eval": 0.1}} if name == "no steps" else {})
    )
    assert any(what in line for line in found), found


def test_steps_cannot_be_skipped_and_saves_are_not_in_the_background(tmp_path):
    found = problems(tmp_path, {}, run={"on_nan": "skip", "save_in_background": True})
    assert [line.split(":")[0] for line in found] == ["run.on_nan", "run.save_in_background"]


def test_the_optimizer_of_a_plugin_is_refused(tmp_path):
    found = problems(tmp_path, {}, plugins={"deepspeed": {}, "optimizer": {}})
    assert any(
        "plugin optimizer makes the optimizer, and DeepSpeed needs that of train.optim" in line for line in found
    )


def test_quantized_weights_are_refused(tmp_path):
    model = {"name": "demo", "options": {"quantization_config": {"load_in_4bit": True}}}
    assert any("quantized weights cannot be sharded" in line for line in problems(tmp_path, {}, model=model))


def test_values_that_agree_are_accepted(tmp_path):
    config = {"gradient_clipping": 0.5, "train_batch_size": "auto", "bf16": {"enabled": "auto"}}
    (tmp_path / "ds.json").write_text(json.dumps({**config, "zero_optimization": {"stage": 3}}))
    assert problems(tmp_path, {"config": str(tmp_path / "ds.json")}, {"max_grad_norm": 0.5}) == []


def test_what_the_section_train_says_is_filled_in_and_a_model_is_saved():
    from sftkit_plugins.deepspeed.configuration import complete

    given = {
        "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False},
        "train_batch_size": 8,
    }
    made = complete(given, None, "optimizer")
    assert made["gradient_clipping"] == made["bf16"]["enabled"] == made["gradient_accumulation_steps"] == "auto"
    assert made["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    assert made["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert made["zero_force_ds_cpu_optimizer"] is False  # so that train.optim runs
    assert "train_batch_size" not in made
    assert given["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is False


@pytest.mark.parametrize("value", [True, "full_shard auto_wrap", ["full_shard"], {"tp_size": 2}, "ds.json"])
@pytest.mark.parametrize("key", ["fsdp", "fsdp_config", "deepspeed", "parallelism_config"])
def test_fields_that_shard_are_refused_in_any_form(tmp_path, key, value):
    run = Pipeline(model="demo", data="demo", train={key: value, "output_dir": str(tmp_path / "run")})
    with pytest.raises(ConfigError, match=rf"train\.{key}: cannot be set here -> .*plugin"):
        run.prepare()


def test_the_field_deepspeed_is_an_option_of_the_plugin(tmp_path):
    run = Pipeline(model="demo", data="demo", train={"deepspeed": "ds.json", "output_dir": str(tmp_path / "run")})
    assert "select plugin deepspeed and set its option config" in str(run.check()[0])


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "plugin deepspeed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_CP_SIZE": "2"}, "context parallelism"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_SP_SIZE": "2"}, "sequence parallelism"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "train.bf16"),
        ({"ACCELERATE_USE_FSDP": "false", "ACCELERATE_MIXED_PRECISION": "no"}, ""),
    ],
)
def test_what_accelerate_launch_asks_for_is_refused(tmp_path, variables, what):
    config = Pipeline(model="demo", data="demo", train={"output_dir": str(tmp_path / "run")}).stages().config
    found = [str(problem) for problem in accelerate_problems(config, variables)]
    assert len(found) == bool(what)
    assert what in "".join(found)


class Evil:
    """An object that would run code when it is unpickled."""

    def __reduce__(self):
        return print, ("code was run",)


def test_states_are_read_without_pickled_objects(tmp_path, capsys):
    import torch
    from deepspeed.runtime.fp16.loss_scaler import LossScaler

    from sftkit_plugins.deepspeed.engine import plain_objects_only

    torch.save({"loss_scaler": LossScaler(2.0), "weight": torch.ones(2)}, tmp_path / "own.pt")
    torch.save({"weight": Evil()}, tmp_path / "evil.pt")
    with plain_objects_only(str(tmp_path)):
        assert torch.load(tmp_path / "own.pt", weights_only=False)["loss_scaler"].loss_scale == 2.0
    with pytest.raises(RunError, match="pickled objects"), plain_objects_only(str(tmp_path)):
        torch.load(tmp_path / "evil.pt", weights_only=False)  # as DeepSpeed calls it
    assert "code was run" not in capsys.readouterr().out
