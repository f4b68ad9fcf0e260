"""What is trained and how, translated from Axolotl and LLaMA-Factory: LoRA+, Muon, freezing, Spectrum and LISA."""

from __future__ import annotations

import re

import pytest

from sftkit import Pipeline
from sftkit.testing import tiny_model
from sftkit_commands.init.axolotl_run import translate as from_axolotl
from sftkit_commands.init.llamafactory_run import translate as from_llamafactory
from sftkit_commands.init.local import Places

LORA = {"adapter": "lora", "lora_r": 2, "lora_target_linear": True}
FREEZE = {"finetuning_type": "freeze"}
NAMES = [name for name, _ in tiny_model().named_parameters()]


@pytest.fixture
def axolotl(workdir):
    def make(**values):
        data = [{"path": "alpaca.jsonl", "type": "alpaca"}]
        return from_axolotl({"base_model": "model", "datasets": data, **values}, Places(workdir, workdir))

    return make


@pytest.fixture
def factory(workdir):
    def make(**values):
        known = {"model_name_or_path": "model", "stage": "sft", "dataset": "alpaca.jsonl"}
        return from_llamafactory(known | values, Places(workdir, workdir))

    return make


def kinds(t, *keys):
    return [t.entries[key].kind for key in keys]


def trained(patterns):
    """The layers and the other weights in whose names a pattern is found."""
    return {name for name in NAMES if any(re.search(pattern, name) for pattern in patterns)}


def test_lora_plus_becomes_an_option_of_plugin_optimizer(axolotl, factory):
    t = axolotl(**LORA, loraplus_lr_ratio=16)
    assert t.values["plugins"]["optimizer"] == {"lora_plus": 16.0}
    t = factory(lora_target="q_proj,v_proj", loraplus_lr_ratio=8.0, loraplus_lr_embedding=1e-6)
    assert t.values["plugins"]["optimizer"] == {"lora_plus": 8.0}
    assert kinds(t, "loraplus_lr_ratio", "loraplus_lr_embedding") == ["translated", "always"]


def test_adapters_of_embeddings_have_their_rate(axolotl, factory):
    t = factory(lora_target="q_proj,embed_tokens", loraplus_lr_ratio=8, loraplus_lr_embedding=1e-5)
    groups = {"lora_embedding_B": {"learning_rate": 1e-5}}
    assert t.values["plugins"]["optimizer"] == {"lora_plus": 8.0, "groups": groups}
    t = axolotl(adapter="lora", lora_target_modules=["embed_tokens"], loraplus_lr_ratio=4)
    assert t.values["plugins"]["optimizer"]["groups"] == {"lora_embedding_": {"learning_rate": 1e-6}}


def test_lora_plus_without_lora_or_beside_another_optimizer_is_not_translated(axolotl, factory):
    assert kinds(axolotl(loraplus_lr_ratio=16), "loraplus_lr_ratio") == ["always"]
    assert kinds(factory(loraplus_lr_ratio=0.5), "loraplus_lr_ratio") == ["lost"]
    t = factory(loraplus_lr_ratio=16, use_muon=True)
    assert kinds(t, "loraplus_lr_ratio", "use_muon") == ["lost", "translated"]
    assert not t.selected("optimizer")


def test_muon_of_llama_factory_replaces_the_optimizer(factory, axolotl):
    t = factory(use_muon=True, optim="adamw_torch", weight_decay=0.1, finetuning_type="full")
    assert t.values["plugins"]["muon"] == {}
    assert "optim" not in t.values["train"]
    assert kinds(t, "use_muon", "optim") == ["translated", "always"]
    assert "decayed" in t.entries["use_muon"].note
    t = factory(use_muon=True, deepspeed="ds_z3_config.json", finetuning_type="full")
    assert kinds(t, "use_muon") == ["lost"]
    assert "another scale" in axolotl(optimizer="muon").entries["optimizer"].fix


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {r"layers.0", r"layers.1"}),
        ({"freeze_trainable_layers": 1}, {"layers.1"}),
        ({"freeze_trainable_layers": -1, "freeze_trainable_modules": "mlp"}, {"layers.0.mlp"}),
        ({"freeze_trainable_layers": 1, "freeze_extra_modules": "lm_head,norm"}, {"layers.1", "lm_head", "norm"}),
    ],
)
def test_the_last_or_first_layers_are_named(factory, keys, expected):
    t = factory(**FREEZE, **keys)
    patterns = t.values["plugins"]["freeze"]["train"]
    assert trained(patterns) == {name for name in NAMES if any(part in name for part in expected)}
    assert all(kind == "translated" for kind in kinds(t, "finetuning_type", *keys))


def test_the_last_layers_of_a_model_that_is_not_here_are_not_known(factory):
    t = factory(**FREEZE, model_name_or_path="org/model", freeze_trainable_layers=2)
    assert kinds(t, "finetuning_type", "freeze_trainable_layers") == ["lost", "lost"]
    t = factory(**FREEZE, model_name_or_path="org/model", freeze_trainable_layers=-2)
    assert t.values["plugins"]["freeze"]["train"] == [r"\.(?:0|1)\."]
    assert kinds(factory(freeze_trainable_layers=2), "freeze_trainable_layers") == ["always"]


def test_unfrozen_parameters_match_from_the_start_with_plain_dots(axolotl):
    given = ["^lm_head.weight$", "model.layers.1.mlp", "model.embed|model.norm", r"model.layers.[0-9]+.self_attn.q_.+"]
    patterns = axolotl(unfrozen_parameters=given).values["plugins"]["freeze"]["train"]
    assert patterns[:2] == [r"^lm_head\.weight$", r"^model\.layers\.1\.mlp"]
    found = trained(patterns)
    assert {"model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "model.embed_tokens.weight"} <= found
    assert "model.layers.0.mlp.up_proj.weight" not in found
    t = axolotl(unfrozen_parameters=["^model.embed_tokens.weight$[:32000]"])
    assert kinds(t, "unfrozen_parameters") == ["lost"]
    assert kinds(axolotl(**LORA, unfrozen_parameters=["lm_head"]), "unfrozen_parameters") == ["lost"]


def test_spectrum_and_lisa_of_axolotl(axolotl):
    plugins = ["axolotl.integrations.spectrum.SpectrumPlugin"]
    t = axolotl(plugins=plugins, spectrum_top_fraction=0.25, spectrum_model_name="org/model")
    assert t.values["plugins"]["freeze"] == {"spectrum": 0.25}
    assert kinds(t, "plugins[0]", "spectrum_top_fraction", "spectrum_model_name") == ["translated"] * 2 + ["always"]
    assert axolotl(plugins=plugins).values["plugins"]["freeze"] == {"spectrum": 0.5}
    assert kinds(axolotl(spectrum_top_fraction=0.25), "spectrum_top_fraction") == ["always"]
    t = axolotl(lisa_n_layers=4, lisa_step_interval=20, lisa_layers_attribute="model.layers")
    assert t.values["plugins"]["lisa"] == {"layers": 4, "interval": 20, "keep_state": True}
    assert kinds(axolotl(lisa_n_layers=4), "lisa_n_layers") == ["always"]
    assert kinds(axolotl(lisa_n_layers=4, lisa_step_interval=2, fsdp=["full_shard"]), "lisa_n_layers") == ["lost"]


def test_what_is_translated_is_taken(axolotl, factory, workdir):
    plugins = ["axolotl.integrations.spectrum.SpectrumPlugin"]
    for t in (
        axolotl(**LORA, loraplus_lr_ratio=16, bf16=False),
        axolotl(plugins=plugins, bf16=False),
        axolotl(lisa_n_layers=1, lisa_step_interval=20, bf16=False),
        factory(use_muon=True, finetuning_type="full"),
        factory(**FREEZE, freeze_trainable_layers=1),
    ):
        assert Pipeline(config={**t.values, "data": {"train": "alpaca.jsonl"}}).check() == ()
