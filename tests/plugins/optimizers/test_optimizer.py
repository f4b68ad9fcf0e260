"""Plugin optimizer: groups of weights with their own learning rate and weight decay."""

from __future__ import annotations

import pytest
import torch
from optimizer_replay import ROWS, TRAIN, log_of, replayed, require_exact_resume, same_weights, trained

from sftkit import Pipeline
from sftkit.errors import ConfigError, RunError
from sftkit.plugin.selected import DEFAULTS
from sftkit.testing import plugin_set, tiny_config, tiny_model, tiny_tokenizer
from sftkit_plugins.optimizer import Optimizer
from sftkit_plugins.peft import PEFT


def groups(model=None, config=None, **options):
    """The groups that the plugin makes, by their names."""
    config = config or tiny_config(train={"learning_rate": 1.0, "weight_decay": 0.1})
    made = Optimizer(**options).make_optimizer(model or tiny_model(), config)
    found: dict[str, list] = {}
    for group in made.param_groups:
        found.setdefault(group["name"], []).append((group["lr"], group["weight_decay"]))
    return found


def problems(plugins=(), train=None, **options):
    config = tiny_config(train=train or {})
    known = plugin_set(Optimizer(**options))
    return [str(each) for _, found in known.hook.check_run(config=config, plugins=known) for each in found]


@pytest.mark.parametrize("optim", ["adamw_torch_fused", pytest.param("adafactor", marks=pytest.mark.slow)])
def test_without_options_a_run_is_bitwise_the_default_one(tmp_path, optim):
    default, _ = trained(tmp_path / "default", [], optim=optim)
    plugin, _ = trained(tmp_path / "plugin", [Optimizer()], optim=optim)
    assert same_weights(default, plugin)
    assert log_of(tmp_path / "default")[-1]["loss"] == log_of(tmp_path / "plugin")[-1]["loss"]


def test_lora_plus_is_that_of_peft(tmp_path):
    from peft.optimizers import create_loraplus_optimizer

    plugins = [PEFT(r=2, dropout=0.0), Optimizer(lora_plus=8)]
    model, recorder = trained(tmp_path / "run", plugins, weight_decay=0.0)
    settings = {"lr": TRAIN["learning_rate"], "loraplus_lr_ratio": 8, "fused": True}
    other, _ = replayed(model, recorder, lambda copy: [create_loraplus_optimizer(copy, torch.optim.AdamW, **settings)])
    assert len(recorder.gradients) == 4
    assert same_weights(model, other)


def test_a_pattern_gives_a_rate_or_a_factor_and_a_weight_decay():
    found = groups(
        groups={"embed": {"learning_rate": 0.5}, r"layers\.0\.": {"factor": 0.1}, "lm_head": {"weight_decay": 0.0}}
    )
    assert found["embed"] == [(0.5, 0.1)]
    assert found[r"layers\.0\."] == [(0.1, 0.1), (0.1, 0.0)]
    assert found["lm_head"] == [(1.0, 0.0)]
    assert found["others"] == [(1.0, 0.1), (1.0, 0.0)]


def test_the_first_pattern_that_matches_counts():
    found = groups(groups={"q_proj": {"factor": 2}, "proj": {"factor": 3}})
    assert (found["q_proj"], found["proj"]) == ([(2.0, 0.1)], [(3.0, 0.1)])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_each_layer_has_less_than_the_one_above_it(architecture):
    found = groups(tiny_model(architecture), layer_decay=0.5)
    rates = {name: {rate for rate, _ in each} for name, each in found.items()}
    head = {"head": {1.0}}
    assert rates == {"embeddings": {0.125}, "layer 0": {0.25}, "layer 1": {0.5}} | head


def test_layers_and_lora_plus_multiply():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    found = groups(model, layer_decay=0.5, lora_plus=4, groups={"layers.1.*lora_B": {"learning_rate": 9}})
    assert found == {
        "layer 0": [(0.25, 0.1)],
        "layer 1": [(0.5, 0.1)],
        "layer 0, lora_B": [(1.0, 0.1)],
        "layers.1.*lora_B": [(9.0, 0.1)],
    }


def test_patterns_without_effect_are_errors():
    model = tiny_model()
    model.get_input_embeddings().requires_grad_(False)
    patterns = {name: {"factor": 2} for name in ("q_prj", "embed", "proj", "q_proj")}
    with pytest.raises(ConfigError) as error:
        groups(model, groups=patterns)
    found = [problem.what for problem in error.value.problems]
    assert found == [
        "'q_prj': it matches no weight",
        "'embed': it matches only weights that are not trained",
        "'q_proj': a pattern before it matches each weight that it matches",
    ]


def test_options_without_effect_are_found_before_anything_is_read():
    (problem,) = problems(lora_plus=4)
    assert "LoRA+ needs an adapter" in problem
    (problem,) = problems(groups={"(": {"factor": 2}})
    assert "is not a regular expression" in problem
    (problem,) = problems(groups={"a": {}})
    assert "changes nothing" in problem
    (problem,) = problems(groups={"a": {"factor": 2, "learning_rate": 1}})
    assert "both learning_rate and factor" in problem
    (problem,) = problems(groups={"a": {"factor": 0}})
    assert "would not be trained" in problem
    (problem,) = problems(train={"optim": "galore_adamw"})
    assert "makes its groups of weights itself" in problem
    assert problems(groups={"a": {"factor": 2}}) == []


@pytest.mark.parametrize("settings", [{"rate": 1}, {"factor": -1}, {"weight_decay": "much"}])
def test_a_wrong_setting_of_a_group_names_it(settings):
    with pytest.raises(ConfigError, match=r"groups\.head\.\w+"):
        Optimizer(groups={"head": settings})


def test_lora_plus_without_lora_and_layers_that_are_not_found_are_errors():
    with pytest.raises(ConfigError, match="no matrix B of LoRA is trained"):
        groups(lora_plus=2)
    model = tiny_model()
    model.model.layers.requires_grad_(False)
    with pytest.raises(ConfigError, match="no layers were found"):
        groups(model, layer_decay=0.5)


def test_the_rates_of_the_groups_follow_the_schedule_in_the_log(tmp_path):
    trained(tmp_path / "run", [Optimizer(groups={"lm_head": {"factor": 0.5}})], lr_scheduler_type="linear")
    last = log_of(tmp_path / "run")[2]
    assert last["learning_rate_others"] == last["learning_rate"] == pytest.approx(0.01 / 2)
    assert last["learning_rate_lm_head"] == pytest.approx(0.01 / 4)


def test_a_misspelt_pattern_stops_a_run_before_its_weights_are_loaded(tmp_path):
    pipeline = Pipeline(
        tiny_model(),
        ROWS,
        tokenizer=tiny_tokenizer(),
        plugins=[Optimizer(groups={"headd": {"factor": 0.5}})],
        train={**TRAIN, "output_dir": str(tmp_path / "run")},
    )
    with pytest.raises(RunError, match="'headd': it matches no weight"):
        pipeline.run()
    assert not (tmp_path / "run").exists()
    assert "checks" in DEFAULTS


@pytest.mark.slow
def test_a_resumed_run_is_exact(tmp_path):
    require_exact_resume(tmp_path, [Optimizer(layer_decay=0.8)])


def test_the_groups_are_shown_by_check(tmp_path):
    pipeline = Pipeline(
        tiny_model(),
        ROWS,
        tokenizer=tiny_tokenizer(),
        plugins=[Optimizer(groups={"lm_head": {"factor": 0.5}})],
        train={**TRAIN, "output_dir": str(tmp_path / "run")},
    )
    (verdict,) = [each for each in pipeline.prepare().verdicts() if each.name == "optimizer"]
    assert verdict.what == "AdamW updates 39,072 weights in 3 groups"
    head = verdict.details["groups"][1]
    assert head == {"name": "lm_head", "weights": 10240, "learning_rate": 0.005, "weight_decay": 0.1}


def test_eight_bit_states_are_in_full_precision_for_embeddings():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    config = tiny_config(train={"optim": "adamw_bnb_8bit"})
    model = tiny_model()
    made = Optimizer().make_optimizer(model, config)
    assert type(made) is bitsandbytes.optim.AdamW
    overrides = bitsandbytes.optim.GlobalOptimManager.get_instance().module_weight_config_triple
    assert (model.get_input_embeddings(), "weight", {"optim_bits": 32}) in overrides
