"""What cannot be divided among processes is refused, with the reason."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from sftkit.testing import tiny_config, tiny_model
from sftkit.training.sharding import OPTIMIZERS
from sftkit_plugins.tensor_parallel import REFUSED, TensorParallel
from sftkit_plugins.tensor_parallel.plan import plan_problems, rule_of


@pytest.fixture(autouse=True)
def two_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")


def problems(size: int = 2, **sections) -> list[str]:
    return [str(problem) for problem in TensorParallel(size=size).check_run(config=tiny_config(**sections))]


def of_model(kind: str, size: int = 2, **sizes) -> list[str]:
    return [str(problem) for problem in plan_problems(AutoConfig.for_model(kind, **sizes), size)]


def test_a_size_below_two_is_refused():
    with pytest.raises(Exception, match="size"):
        TensorParallel(size=1)


def test_a_run_that_can_be_divided_is_not_refused():
    assert problems() == []


def test_a_single_process_is_refused_with_the_command(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert "--nproc 4" in problems(4)[0]


def test_a_number_of_processes_that_groups_do_not_divide_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert "6 processes cannot form groups of 4" in problems(4)[0]


@pytest.mark.parametrize("name", REFUSED)
def test_plugins_that_need_whole_layers_are_refused_with_the_reason(name):
    assert REFUSED[name] in problems(plugins={name: {}})[0]


@pytest.mark.parametrize("key", ["fp16", "torch_compile", "eval_use_gather_object"])
def test_arguments_that_do_not_fit_are_refused(key):
    assert any(f"train.{key}" in problem for problem in problems(train={key: True}))


def test_optimizers_that_need_whole_weights_are_refused():
    assert OPTIMIZERS[0] in problems(train={"optim": "adafactor"})[0]


def test_the_model_is_checked_before_data_are_read(tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path)
    assert "no tensor-parallel plan for model type gpt2" in problems(model={"name": str(tmp_path)})[0]


@pytest.mark.parametrize(
    ("kind", "sizes", "what"),
    [
        ("qwen3_moe", {}, "not linear"),
        ("llama", {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48}, "3 key and value heads"),
        ("llama", {"num_attention_heads": 5, "hidden_size": 40}, "5 attention heads"),
        ("llama", {"intermediate_size": 33}, "33 units"),
        ("gemma3", {}, "other inputs than text"),
    ],
)
def test_models_that_cannot_be_divided_are_refused(kind, sizes, what):
    assert any(what in problem for problem in of_model(kind, **sizes))


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2"])
def test_usual_models_can_be_divided(kind):
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    assert of_model(kind, **sizes) == []


def test_a_rule_is_that_of_every_layer():
    plan = {"layers.*.mlp.up_proj": "colwise", "layers.*.self_attn.o_proj": "rowwise_rep"}
    assert rule_of(plan, "layers.11.mlp.up_proj") == "columns"
    assert rule_of(plan, "layers.0.self_attn.o_proj") == rule_of({"o": "rowwise_split_input"}, "o")
    assert rule_of(plan, "layers.0.mlp") == ""
