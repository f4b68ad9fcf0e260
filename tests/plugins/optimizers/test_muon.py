"""Plugin muon: the matrices of the layers by Muon, everything else by AdamW."""

from __future__ import annotations

import pytest
import torch
from optimizer_replay import QUICK, ROWS, TRAIN, log_of, replayed, require_exact_resume, same_weights, trained

from sftkit import Pipeline
from sftkit.config.source import ConfigSource
from sftkit.errors import ConfigError, RunError
from sftkit.plugin.resolve import resolve
from sftkit.testing import tiny_config, tiny_model, tiny_tokenizer
from sftkit_plugins.muon import Muon
from sftkit_plugins.optimizer import Optimizer

MATRIX = ("self_attn", "mlp")


def by_hand(**options):
    """Makes torch's own optimizers for a llama."""

    def make(model):
        named = dict(model.named_parameters())
        matrices = [weight for name, weight in named.items() if any(part in name for part in MATRIX)]
        tables = [named["model.embed_tokens.weight"], named["lm_head.weight"]]
        norms = [weight for name, weight in named.items() if "norm" in name]
        rate, decay = TRAIN["learning_rate"], TRAIN["weight_decay"]
        settings = {"lr": rate, "weight_decay": decay, "adjust_lr_fn": "match_rms_adamw", **options}
        groups = [{"params": tables, "weight_decay": decay}, {"params": norms, "weight_decay": 0.0}]
        return [torch.optim.Muon(matrices, **settings), torch.optim.AdamW(groups, lr=rate, fused=True)]

    return make


def test_a_run_equals_steps_by_hand(tmp_path):
    model, recorder = trained(tmp_path / "run", [Muon()])
    other, _ = replayed(model, recorder, by_hand())
    assert same_weights(model, other)
    assert log_of(tmp_path / "run")[-1]["loss"] < log_of(tmp_path / "run")[0]["loss"]


@pytest.mark.slow
def test_options_are_those_of_torch(tmp_path):
    options = {"momentum": 0.5, "nesterov": False, "weight_decay": 0.3}
    own = Muon(learning_rate=0.02, scale="original", steps=3, **options)
    model, recorder = trained(tmp_path / "run", [own])
    other, _ = replayed(model, recorder, by_hand(lr=0.02, adjust_lr_fn="original", ns_steps=3, **options))
    assert same_weights(model, other)
    entry = log_of(tmp_path / "run")[1]
    assert entry["learning_rate_muon"] == pytest.approx(2 * entry["learning_rate_adamw"])


@pytest.mark.slow
def test_a_resumed_run_is_exact(tmp_path):
    require_exact_resume(tmp_path, [Muon()])


def test_the_factors_of_lora_are_matrices_and_those_of_embeddings_are_not():
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "embed_tokens", "lm_head"]
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=targets))
    made = Muon().make_optimizer(model, tiny_config(train={}))
    names = {id(weight): name for name, weight in model.named_parameters()}
    muon = [names[id(weight)] for group in made.param_groups if group["name"] == "muon" for weight in group["params"]]
    assert len(muon) == 2 * 2
    assert all("q_proj.lora_" in name for name in muon)


def test_stacked_experts_are_left_to_adamw():
    model = tiny_model("qwen3_moe", num_experts=4, moe_intermediate_size=16, num_experts_per_tok=2)
    made = Muon().make_optimizer(model, tiny_config(train={}))
    names = {id(weight): name for name, weight in model.named_parameters()}
    adamw = [names[id(weight)] for group in made.param_groups if group["name"] == "adamw" for weight in group["params"]]
    assert "model.layers.0.mlp.experts.down_proj" in adamw


def test_a_model_without_trained_matrices_is_refused():
    model = tiny_model()
    model.model.layers.requires_grad_(False)
    with pytest.raises(ConfigError, match="no matrix of a layer is trained"):
        Muon().make_optimizer(model, tiny_config(train={}))


@pytest.mark.parametrize("field", ["optim", "optim_args"])
def test_a_second_choice_of_the_optimizer_is_refused(field):
    train = {"optim": {"optim": "sgd"}, "optim_args": {"optim_args": "momentum=0.9"}}[field]
    source = ConfigSource({"model": "demo", "data": "demo", "train": train, "plugins": ["muon"]})
    with pytest.raises(ConfigError, match=rf"train\.{field}: plugin muon takes its place -> remove it"):
        resolve(source)


@pytest.mark.parametrize("engine", ["fsdp", "tensor_parallel", "deepspeed"])
def test_engines_that_shard_matrices_are_refused(engine):
    source = ConfigSource({"model": "demo", "data": "demo", "plugins": ["muon", engine]})
    with pytest.raises(ConfigError, match="cannot be used together"):
        resolve(source)


def test_two_optimizers_are_an_error():
    source = ConfigSource({"model": "demo", "data": "demo", "plugins": ["muon", "optimizer"]})
    with pytest.raises(ConfigError, match="make_optimizer"):
        resolve(source)


def test_the_state_of_another_optimizer_is_not_loaded(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2, "lr_scheduler_type": "constant"}
    trained(tmp_path / "run", [Muon()], **saving)
    settings = {**TRAIN, **saving, "max_steps": 4, "output_dir": str(tmp_path / "run")}
    allowed = {"resume": True, "allow_changes": ["plugins.muon", "plugins.optimizer"]}
    own = Optimizer(groups={"lm_head": {"factor": 0.5}})
    known = {"plugins": [own, *QUICK], "train": settings, **allowed}
    with pytest.raises(RunError, match="is of another optimizer, or of other groups"):
        Pipeline(tiny_model(), ROWS, tokenizer=tiny_tokenizer(), **known).run()
