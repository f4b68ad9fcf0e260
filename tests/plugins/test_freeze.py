"""Plugin freeze: which weights are trained, by pattern or by Spectrum, and that nothing else changes."""

from __future__ import annotations

import json
import logging
import math
import re

import numpy as np
import pytest
import torch
from optimizer_replay import QUICK, ROWS, TRAIN, require_exact_resume, same_weights, trained
from pydantic import ValidationError

from sftkit import Pipeline
from sftkit.api import Choices
from sftkit.errors import ConfigError
from sftkit.testing import run_problems, tiny_config, tiny_model, tiny_tokenizer
from sftkit_plugins.freeze import Freeze
from sftkit_plugins.freeze.spectrum import signal_to_noise
from sftkit_plugins.muon import Muon

LAYERS = {"num_hidden_layers": 4}


def adapted(model, new=(), choices=None, **options):
    """The names of the weights that are trained."""
    made = Freeze(**options).adapt_model(model, tiny_config(), list(new), choices or Choices())
    assert made is model
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def refused(match, model=None, new=(), **options):
    with pytest.raises(ConfigError, match=match):
        adapted(model or tiny_model(), new, **options)


def planted(rows, columns, rank, strength, seed=0):
    """Noise with some strong directions."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, columns, generator=generator)
    left = torch.linalg.qr(torch.randn(rows, rank, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, rank, generator=generator)).Q
    return noise + strength * left @ right.T


def ratio_by_hand(weight):
    """Spectrum's ratio in numpy, in double precision."""
    values = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    sigma = (np.quantile(values, 0.75) - np.quantile(values, 0.25)) / 1.349
    beta = min(weight.shape) / max(weight.shape)
    threshold = sigma * (1 + math.sqrt(beta))
    return values[values > threshold].sum() / values[values <= threshold].sum() / values.max()


def test_frozen_weights_keep_their_values_and_the_others_train_as_if_frozen_by_hand(tmp_path):
    pattern = r"embed_tokens|layers\.0\.|norm"
    by_plugin, recorded = trained(tmp_path / "plugin", [Freeze(patterns=(pattern,))])
    model = tiny_model()
    for name, weight in model.named_parameters():
        weight.requires_grad_(not any(part in name for part in ("embed_tokens", "layers.0.", "norm")))
    settings = {**TRAIN, "output_dir": str(tmp_path / "hand")}
    by_hand = Pipeline(model, ROWS, tokenizer=tiny_tokenizer(), plugins=QUICK, train=settings).run().model
    assert same_weights(by_plugin, by_hand)
    own = {name for name, weight in by_plugin.named_parameters() if weight.requires_grad}
    assert all(step.keys() == own for step in recorded.gradients)
    same = {name for name, weight in by_plugin.named_parameters() if weight.equal(recorded.before[name])}
    assert same == recorded.before.keys() - own


@pytest.mark.slow
def test_the_gradients_of_trained_weights_are_those_of_a_plain_run(tmp_path):
    _, plain = trained(tmp_path / "plain", [], max_steps=1, max_grad_norm=0.0)
    _, frozen = trained(tmp_path / "frozen", [Freeze(train=(r"layers\.1\.",))], max_steps=1, max_grad_norm=0.0)
    assert frozen.gradients[0]
    for name, gradient in frozen.gradients[0].items():
        assert gradient.equal(plain.gradients[0][name])


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_get_gradients_below_frozen_embeddings(tmp_path, reentrant):
    plugins = [Freeze(patterns=("embed_tokens", r"layers\.0"))]
    plain, _ = trained(tmp_path / "plain", plugins)
    checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    model, recorded = trained(tmp_path / "run", plugins, **checkpointing)
    assert any("layers.1" in name for name in recorded.gradients[0])
    assert same_weights(plain, model)


def test_train_freezes_everything_else():
    assert adapted(tiny_model(), train=("q_proj", r"1\.mlp\.up")) == {
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    }


def test_what_was_frozen_before_stays_frozen():
    model = tiny_model()
    model.model.layers[0].requires_grad_(False)
    assert all("layers.1" in name for name in adapted(model, train=("q_proj",)))
    refused("'layers.0' matches no weight that could be trained", model, train=(r"layers.0",))


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_tied_embeddings_have_both_names(name):
    model = tiny_model(tie_word_embeddings=True)
    assert "model.embed_tokens.weight" not in adapted(model, patterns=(name,))
    assert not model.lm_head.weight.requires_grad
    assert adapted(tiny_model(tie_word_embeddings=True), train=(name,)) == {"model.embed_tokens.weight"}


def test_patterns_without_effect_are_errors_with_the_nearest_name():
    refused("'q_prj' matches no weight .*did you mean 'q_proj'", patterns=("q_prj", "lm_head"))
    refused(r"did you mean 'model.layers.1.mlp.up_proj.weight'", train=(r"model\.layers\.1\.mlp\.upproj\.weight$",))
    refused("'xyz' matches no weight .*names are like model", train=("xyz",))
    refused("every weight is frozen", patterns=(".",))
    refused("no weight is frozen", train=(".",))


def test_the_embeddings_of_new_tokens_may_not_be_frozen():
    refused("2 new tokens have rows in model.embed_tokens.weight", new=[318, 319], patterns=("embed_tokens",))
    assert adapted(tiny_model(), [319], patterns=(r"layers\.0\.",))


def test_options_are_checked_before_anything_is_read():
    def what(**options):
        return [problem.what for problem in run_problems(Freeze(**options))]

    assert what() == ["it would freeze nothing"]
    assert what(patterns=("a",), spectrum=0.5) == ["patterns and spectrum exclude each other"]
    assert what(train=("a",), also=("b",)) == ["only Spectrum's choice has weights beside it"]
    assert what(train=("(",))[0].startswith("'(' is not a regular expression")
    assert what(train=("a",)) == []
    with pytest.raises((ConfigError, ValidationError), match="it must be below 1"):
        Freeze(spectrum=1)


def test_an_adapter_is_refused(tmp_path):
    from peft import LoraConfig, get_peft_model

    get_peft_model(tiny_model(), LoraConfig(r=2)).save_pretrained(tmp_path)
    problems = run_problems(Freeze(train=("a",)), model={"name": str(tmp_path)})
    assert "is an adapter" in problems[0].what
    with pytest.raises(ConfigError, match="plugins freeze and peft both fill the slot"):
        Pipeline(tiny_model(), ROWS, tokenizer=tiny_tokenizer(), plugins=["freeze:patterns=[a]", "peft"]).stages()


@pytest.mark.parametrize("shape", [(64, 48), (48, 64), (50, 50)])
def test_the_ratio_is_that_of_the_formula(shape):
    for seed in range(3):
        weight = planted(*shape, rank=3, strength=40.0, seed=seed)
        assert signal_to_noise(weight) == pytest.approx(ratio_by_hand(weight), rel=1e-5)
    assert signal_to_noise(torch.zeros(4, 4)) == 0
    assert signal_to_noise(torch.eye(4)) == math.inf  # all singular values are the same: there is no noise


def test_spectrum_trains_the_layers_with_a_planted_signal():
    model = tiny_model(hidden_size=64, intermediate_size=96, head_dim=16, **LAYERS)
    signal = {"self_attn.q_proj": {1, 2}, "mlp.down_proj": {0, 3}}
    for number, layer in enumerate(model.model.layers):
        for kind, layers in signal.items():
            weight = layer.get_submodule(kind).weight
            ranks = 12 if number in layers else 1  # about equal singular values: they add up, and the largest divides
            weight.data = planted(*weight.shape, ranks, 60.0, seed=number)
    found = adapted(model, spectrum=0.5, also=())
    for kind, layers in signal.items():
        assert {int(name.split(".")[2]) for name in found if kind in name} == layers
        ratios = [ratio_by_hand(layer.get_submodule(kind).weight.detach()) for layer in model.model.layers]
        assert set(np.argsort(ratios)[-2:]) == layers
    assert len(found) == 7 * 2


def test_embeddings_and_head_are_trained_beside_the_choice_unless_others_are_named():
    tables = {"model.embed_tokens.weight", "lm_head.weight"}
    assert {name for name in adapted(tiny_model(), spectrum=0.5) if "layers" not in name} == tables
    norms = adapted(tiny_model(), spectrum=0.5, also=("norm",))
    assert {name for name in norms if "_proj" not in name} == {
        name for name, _ in tiny_model().named_parameters() if "norm" in name
    }


def test_biases_are_trained_with_their_weights():
    names = adapted(tiny_model("gpt2"), spectrum=0.5, also=())
    weights = {name.removesuffix(".weight") for name in names if name.endswith("weight")}
    assert {name.removesuffix(".bias") for name in names if name.endswith("bias")} == weights
    assert len(weights) == 4


def test_less_than_one_layer_is_an_error():
    refused("0.25 of 2 layers is less than one layer .*use at least 0.5", spectrum=0.25)


def test_a_choice_is_made_once_and_kept():
    choices = Choices()
    first = adapted(tiny_model(seed=1), choices=choices, spectrum=0.5)
    again = Choices(json.loads(json.dumps(choices.made)))
    other = adapted(tiny_model(seed=5), spectrum=0.5)
    assert other != first
    assert adapted(tiny_model(seed=5), choices=again, spectrum=0.5) == first
    received = Choices(from_main=lambda name, text: json.dumps(choices.made["freeze: spectrum 0.5"]), main=False)
    with torch.device("meta"):
        assert adapted(tiny_model(seed=5), choices=received, spectrum=0.5) == first


@pytest.mark.slow
def test_the_choice_is_in_the_manifest_and_a_resumed_run_takes_it(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="sftkit")
    require_exact_resume(tmp_path, [Freeze(spectrum=0.5)])
    path = tmp_path / "half" / "manifest.json"
    kept = json.loads(path.read_text())["choices"]["freeze: spectrum 0.5"]
    assert kept.keys() == {f"model.layers.*.{kind}" for kind in KINDS}
    assert all(len(names) == 1 for names in kept.values())
    assert re.search(r"freeze: [\d,]+ trainable of 39,072 parameters", caplog.text)
    assert "freeze: model.layers.*.mlp.up_proj: " in caplog.text


KINDS = [f"self_attn.{kind}_proj" for kind in "qkvo"] + [f"mlp.{kind}_proj" for kind in ("gate", "up", "down")]


def test_the_estimate_of_memory_counts_what_is_trained(tmp_path):
    def items(*plugins):
        settings = {**TRAIN, "output_dir": str(tmp_path / "run")}
        known = {"tokenizer": tiny_tokenizer(), "plugins": [*plugins], "train": settings}
        run = Pipeline(tiny_model(), ROWS, **known).prepare()
        (verdict,) = [each for each in run.verdicts() if each.name == "memory"]
        return verdict.details["items"]

    whole, half = items(), items(Freeze(spectrum=0.5))
    sizes = sum(weight.numel() for name, weight in tiny_model().named_parameters() if "layers.0." in name)
    norms = 2 * 32
    assert whole["optimizer state"] - half["optimizer state"] == 8 * (sizes + norms + 32)


@pytest.mark.slow
def test_other_optimizers_update_only_what_is_trained(tmp_path):
    model, recorded = trained(tmp_path / "run", [Freeze(patterns=(r"layers\.0\.",)), Muon()])
    for name, weight in model.named_parameters():
        assert weight.equal(recorded.before[name]) == ("layers.0." in name)
