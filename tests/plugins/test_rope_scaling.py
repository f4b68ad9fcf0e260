"""Plugin rope_scaling: frequencies, parity with transformers, packing, adapters, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sftkit import Pipeline
from sftkit.api import ConfigError, RunError, difference_from_alone, document_trials, load_trained, position_limit
from sftkit.testing import CHATML, tiny_config, tiny_model, tiny_tokenizer
from sftkit_plugins.rope_scaling import RopeScaling
from sftkit_plugins.rope_scaling.rotary import rotary_modules

TYPES = ("yarn", "linear", "llama3", "dynamic")
EXACT = TYPES[:3]  # when packed
THETA, LENGTH, FACTOR = 10000.0, 64, 4.0  # of the models here, which are scaled to 256 positions
WIDE = {"head_dim": 32, "hidden_size": 128, "max_position_embeddings": LENGTH, "initializer_range": 0.1}
ROWS = [{"text": f"{number} the quick brown fox jumps over the lazy dog " * number} for number in (1, 9, 4, 6)]


def saved(directory, architecture="llama", **options):
    tiny_model(architecture, **{**WIDE, **options}).save_pretrained(directory)
    tiny_tokenizer(chat_template=CHATML).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("base"))


def pipeline(model, *plugins, output="out", length=256, data=ROWS, **train):
    train = {"output_dir": str(output), "max_steps": 1, "per_device_train_batch_size": 1} | train
    return Pipeline(str(model), data, plugins=plugins, train=train, config={"data": {"max_length": length}})


def loaded(model, *plugins, **options):
    """The model as a run with the plugins loads it."""
    stages = pipeline(model, *plugins, **options).stages()
    return stages.plugins.hook.load_model(config=stages.config, options=stages.plugins.model_options(stages.config))


def parameters(kind, **more):
    """As they are written into config.json by hand."""
    found = {"rope_type": kind, "rope_theta": THETA, "factor": FACTOR}
    if kind in ("yarn", "llama3"):
        found["original_max_position_embeddings"] = LENGTH
    if kind == "llama3":
        found |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {"rope_parameters": found | more, "max_position_embeddings": LENGTH if kind == "dynamic" else 256}


def ids_of(length):
    return torch.arange(length)[None] % 300 + 3


def results(model, ids):
    model.zero_grad()
    out = model.eval()(input_ids=ids, labels=ids)
    out.loss.backward()
    return out.logits.detach(), {name: weight.grad for name, weight in model.named_parameters()}


def plain_frequencies(dim=32):
    return [THETA ** (-2 * pair / dim) for pair in range(dim // 2)]


def expected_frequencies(kind, length=256, dim=32):
    """The formulas of the papers, for one pair of dimensions after the other."""
    plain = plain_frequencies(dim)
    if kind == "linear":  # Chen et al., equation 4: positions are divided
        return [each / FACTOR for each in plain], 1.0
    if kind == "dynamic":  # Peng et al., section 3.4: the base of NTK-aware scaling, at the length of the row
        scale = FACTOR * length / LENGTH - (FACTOR - 1)
        changed = THETA * scale ** (dim / (dim - 2))
        return [changed ** (-2 * pair / dim) for pair in range(dim // 2)], 1.0
    found = []
    if kind == "llama3":
        for each in plain:
            turns = LENGTH * each / (2 * math.pi)
            smooth = min(max((turns - 1) / (4 - 1), 0), 1)
            found.append((1 - smooth) * each / FACTOR + smooth * each)
        return found, 1.0

    def dimension(turns):  # Peng et al., equation 15 solved for the dimension, as in the authors' code
        return dim * math.log(LENGTH / (turns * 2 * math.pi)) / (2 * math.log(THETA))

    low, high = max(math.floor(dimension(32)), 0), min(math.ceil(dimension(1)), dim - 1)
    for pair, each in enumerate(plain):
        kept = 1 - min(max((pair - low) / (high - low), 0), 1)
        found.append((1 - kept) * each / FACTOR + kept * each)
    return found, 0.1 * math.log(FACTOR) + 1  # equation 22


@pytest.mark.parametrize("kind", TYPES)
def test_frequencies_with_default_options_are_those_of_the_papers(base, kind):
    model = loaded(base, f"rope_scaling:type={kind}")
    [rotary] = rotary_modules(model)
    ids = ids_of(256)
    cosines, _ = rotary(torch.zeros(1, 256, 1), torch.arange(256)[None])
    wanted, attention = expected_frequencies(kind)
    torch.testing.assert_close(rotary.inv_freq, torch.tensor(wanted), rtol=1e-5, atol=0)
    angles = torch.arange(256)[:, None] * torch.tensor(wanted + wanted)
    torch.testing.assert_close(cosines[0], angles.cos() * attention, rtol=0, atol=1e-4)
    assert model(ids).logits.isfinite().all()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_logits_and_gradients_are_those_of_transformers_with_this_configuration(tmp_path, architecture, kind):
    saved(tmp_path, architecture)
    config = AutoConfig.from_pretrained(tmp_path)
    for name, value in parameters(kind).items():
        setattr(config, name, value)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, config=config)
    ours, theirs = (results(model, ids_of(200)) for model in (loaded(tmp_path, f"rope_scaling:type={kind}"), plain))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    unscaled = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert not torch.allclose(ours[0], unscaled(ids_of(200)).logits, atol=1e-3)


@pytest.mark.parametrize("kind", ["yarn", *(pytest.param(kind, marks=pytest.mark.slow) for kind in TYPES[1:])])
def test_the_saved_model_is_the_same_in_transformers_alone(base, tmp_path, kind):
    run = pipeline(base, f"rope_scaling:type={kind}", output=tmp_path / "run").run()
    written = json.loads((run.directory / "config.json").read_text())
    wanted = parameters(kind)
    assert (written["rope_parameters"], written["max_position_embeddings"]) == tuple(wanted.values())
    trained, read = run.model.eval(), AutoModelForCausalLM.from_pretrained(run.directory)
    torch.testing.assert_close(read(ids_of(250)).logits, trained(ids_of(250)).logits, rtol=0, atol=0)
    assert position_limit(load_trained(run.directory).model.config) == 256


@pytest.mark.parametrize("kind", TYPES)
def test_only_dynamic_changes_the_documents_of_a_packed_row(base, kind):
    model = loaded(base, f"rope_scaling:type={kind}").eval()
    RopeScaling(type=kind).patch_kernels(model)
    trials = document_trials(model.config, None, None, 2, 256)
    found = difference_from_alone(model, trials)
    assert (found is None) == (kind in EXACT), found


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXACT)
def test_packed_and_padding_free_runs_have_the_loss_of_padded_ones(base, tmp_path, kind):
    chosen, batch = f"rope_scaling:type={kind}", {"per_device_train_batch_size": 4}
    ways = {"padded": (), "packed": ("packing",), "free": ("flash_attn",)}
    losses = {}
    for name, more in ways.items():
        run = pipeline(base, chosen, *more, output=tmp_path / name, length=300, **batch)
        losses[name] = run.run().metrics["train_loss"]
    assert losses["packed"] == pytest.approx(losses["padded"], abs=1e-5)
    assert losses["free"] == pytest.approx(losses["padded"], abs=1e-5)


def test_dynamic_is_refused_with_packing_before_the_model_is_loaded(base):
    with pytest.raises(ConfigError, match="would change each other -> use type=yarn, or drop plugin packing"):
        pipeline(base, "rope_scaling:type=dynamic", "packing").stages()


@pytest.mark.slow
def test_dynamic_is_refused_in_batches_without_padding(base, tmp_path):
    run = pipeline(base, "rope_scaling:type=dynamic", "flash_attn", output=tmp_path, per_device_train_batch_size=2)
    with pytest.raises(ConfigError, match="does not keep the documents of a batch apart"):
        run.run()


def test_dynamic_scales_a_batch_by_its_own_rows_alone(base):
    model = loaded(base, "rope_scaling:type=dynamic").eval()
    plain = [AutoModelForCausalLM.from_pretrained(base, **parameters("dynamic")).eval() for _ in range(2)]
    alone = [each(ids_of(length)).logits for each, length in zip(plain, (99, 20), strict=True)]
    model(ids_of(250))  # transformers alone scales some of the later rows as this one
    assert not all(torch.equal(model(ids_of(n)).logits, wanted) for n, wanted in zip((99, 20), alone, strict=True))
    RopeScaling(type="dynamic").patch_kernels(model)
    for _ in range(2):
        model(ids_of(250))
        for length, wanted in zip((99, 20), alone, strict=True):
            torch.testing.assert_close(model(ids_of(length)).logits, wanted, rtol=0, atol=0)


@pytest.mark.slow
def test_a_resumed_run_with_dynamic_is_the_uninterrupted_one(base, tmp_path):
    options = {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "save_steps": 1}
    whole = pipeline(base, "rope_scaling:type=dynamic", output=tmp_path / "whole", max_steps=4, **options).run()
    half = pipeline(base, "rope_scaling:type=dynamic", output=tmp_path / "half", max_steps=2, **options).run()
    for last in (3, 4):
        sections = {"data": {"max_length": 256}}
        train = {"output_dir": str(half.directory), "per_device_train_batch_size": 1, "max_steps": last, **options}
        names = {"model": str(base), "data": ROWS, "plugins": ["rope_scaling:type=dynamic"]}
        again = Pipeline(**names, train=train, config=sections, resume=True).run()
    weights = zip(whole.model.state_dict().items(), again.model.state_dict().items(), strict=True)
    assert [name for (name, one), (_, other) in weights if not torch.equal(one, other)] == []


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """A run that trained an adapter on a scaled base, and its result."""
    output = tmp_path_factory.mktemp("adapter") / "run"
    return pipeline(base, "rope_scaling", "peft:r=2", output=output, learning_rate=0.1, save_steps=1).run()


def test_an_adapter_carries_the_scaling_of_its_base(adapter):
    for directory in (adapter.directory, adapter.directory / "checkpoint-1"):
        assert json.loads((directory / "base_config.json").read_text()) == parameters("yarn")
        trained = load_trained(directory)
        torch.testing.assert_close(trained.model(ids_of(200)).logits, adapter.model.eval()(ids_of(200)).logits)


@pytest.mark.slow
def test_an_adapter_without_its_run_is_loaded_on_the_scaled_base(adapter, tmp_path):
    for path in adapter.directory.iterdir():
        if path.is_file() and path.name not in ("manifest.json", "log.jsonl"):
            shutil.copy(path, tmp_path)
    wanted = adapter.model.eval()(ids_of(200)).logits
    torch.testing.assert_close(load_trained(tmp_path).model(ids_of(200)).logits, wanted)
    continued = pipeline(tmp_path, output=tmp_path / "out", learning_rate=1e-12).run()
    torch.testing.assert_close(continued.model.eval()(ids_of(200)).logits, wanted)
    assert json.loads((continued.directory / "base_config.json").read_text()) == parameters("yarn")


@pytest.mark.slow
def test_a_merged_adapter_has_the_scaling_in_its_configuration(adapter, tmp_path, cli):
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    cli("export", adapter.directory, "--merge", "--data", data, "--to", tmp_path / "merged", cwd=tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.config.rope_parameters["factor"] == FACTOR
    wanted = adapter.model.eval()(ids_of(200)).logits
    torch.testing.assert_close(merged(ids_of(200)).logits, wanted, rtol=0, atol=1e-4)
    cli("export", adapter.directory, "--to", tmp_path / "copy", cwd=tmp_path)
    assert json.loads((tmp_path / "copy" / "base_config.json").read_text()) == parameters("yarn")


OTHERS = {
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16},
    "gpt_neox": {"rope_parameters": {"rope_type": "default", "rope_theta": THETA, "partial_rotary_factor": 0.5}},
    "mixtral": {"head_dim": None, "num_local_experts": 2, "num_experts_per_tok": 1},
}


@pytest.mark.parametrize("architecture", OTHERS)
def test_rotary_embeddings_of_layers_and_of_parts_of_heads_are_scaled(tmp_path, architecture):
    before = tiny_model(architecture, **{**WIDE, **OTHERS[architecture]}).config.rope_parameters
    after = loaded(saved(tmp_path, architecture, **OTHERS[architecture]), "rope_scaling").config
    changed, kept = after.rope_parameters, {"rope_type", "factor", "original_max_position_embeddings"}
    if architecture == "gemma3_text":
        assert changed["sliding_attention"] == before["sliding_attention"]
        changed, before = changed["full_attention"], before["full_attention"]
    assert (changed["rope_type"], changed["factor"], after.max_position_embeddings) == ("yarn", FACTOR, 256)
    assert {k: v for k, v in changed.items() if k not in kept} == {k: v for k, v in before.items() if k not in kept}


def test_the_language_model_of_an_image_text_model_is_scaled(tmp_path):
    from transformers import Gemma3Config

    text = {"vocab_size": 320, "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    Gemma3Config(text_config={**text, **WIDE}).save_pretrained(tmp_path)
    options = RopeScaling().model_options(tiny_config(model={"name": str(tmp_path)}, data={"max_length": 256}))
    assert options["text_config"]["max_position_embeddings"] == 256
    assert options["text_config"]["rope_parameters"]["full_attention"]["factor"] == FACTOR


def refusal(plugin, directory, **data):
    plugins = pipeline(directory).stages().plugins
    config = tiny_config(model={"name": str(directory)}, data={"max_length": 256} | data)
    return "\n".join(map(str, plugin.check_run(config, plugins)))


REFUSED = {
    "gpt2 have no rotary position embeddings": ("gpt2", {}),
    "bloom have no rotary position embeddings": ("bloom", {}),
    "of the type proportional, which cannot be scaled": ("gemma4_text", {}),
    "layers of the types main, compress, none of them full_attention": ("deepseek_v4", {}),
    "transformers refuses this scaling for models of the type phi3": ("phi3", {"original_max_position_embeddings": 64}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_models_that_cannot_be_scaled_are_refused(tmp_path, message):
    architecture, options = REFUSED[message]
    AutoConfig.for_model(architecture, **(options | {"vocab_size": 320})).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        RopeScaling().model_options(tiny_config(model={"name": str(tmp_path)}, data={"max_length": 1 << 20}))


def test_a_model_that_ignores_the_parameters_is_refused_when_it_is_loaded(base):
    model, plugin = loaded(base, "rope_scaling"), RopeScaling()
    wrapper = plugin.load_model(tiny_config())
    next(wrapper)
    rotary_modules(model)[0].inv_freq.mul_(2)
    with pytest.raises(ConfigError, match="do not compute their positions from rope_parameters"):
        wrapper.send(model)


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (RopeScaling(type="linear", beta_fast=16), "option beta_fast: only for type=yarn"),
        (RopeScaling(high_freq_factor=2), "option high_freq_factor: only for type=llama3"),
        (RopeScaling(beta_slow=40), "beta_slow is 40, which must be below beta_fast, 32"),
    ],
)
def test_options_that_do_not_fit_are_refused(base, plugin, message):
    assert message in refusal(plugin, base)


def test_rows_that_the_model_can_take_need_no_scaling(base):
    assert "nothing to scale: data.max_length is 64, and the model has 64 positions" in refusal(
        RopeScaling(), base, max_length=64
    )
    assert not refusal(RopeScaling(factor=2), base, max_length=64)


def test_the_factor_is_the_ratio_of_the_lengths_rounded_up(base):
    config = tiny_config(model={"name": str(base)}, data={"max_length": 130})
    assert RopeScaling().model_options(config)["rope_parameters"]["factor"] == 3
    assert RopeScaling(original_max_position_embeddings=32).model_options(config)["max_position_embeddings"] == 160


def test_a_scaled_model_is_trained_as_it_is_or_scaled_anew_on_demand(tmp_path):
    saved(tmp_path, **parameters("yarn", beta_fast=16.0))
    config = tiny_config(model={"name": str(tmp_path)}, data={"max_length": 256})
    assert RopeScaling().model_options(config) == {}
    assert RopeScaling(factor=4, beta_fast=16).model_options(config) == {}
    for other in (RopeScaling(type="linear"), RopeScaling(factor=8), RopeScaling(beta_fast=32)):
        with pytest.raises(ConfigError, match=r"scaled already: yarn by 4, to 256 positions -> drop .* replace=true"):
            other.model_options(config)
    longer = tiny_config(model={"name": str(tmp_path)}, data={"max_length": 512})
    made = RopeScaling(replace=True).model_options(longer)
    assert made == parameters("yarn", factor=8.0, beta_fast=16.0) | {"max_position_embeddings": 512}
    made = RopeScaling(type="linear", replace=True).model_options(longer)["rope_parameters"]
    assert made == {"rope_type": "linear", "rope_theta": THETA, "factor": 8.0}


@pytest.mark.slow
def test_a_trained_model_is_trained_further_with_the_same_options(base, tmp_path):
    for kind in ("linear", "dynamic"):
        chosen = f"rope_scaling:type={kind},original_max_position_embeddings=64"
        first = pipeline(base, chosen, output=tmp_path / kind).run()
        second = pipeline(first.directory, chosen, output=tmp_path / f"{kind}-2").run()
        assert second.model.config.rope_parameters == first.model.config.rope_parameters
        assert load_trained(first.directory).model.config.rope_parameters["factor"] == FACTOR


def test_a_loaded_model_is_refused():
    with pytest.raises(ConfigError, match="the model is loaded already, with its rotary embeddings"):
        Pipeline(tiny_model(), ROWS, tokenizer=tiny_tokenizer(), plugins=["rope_scaling"]).stages()


def test_random_weights_are_made_for_the_scaled_positions(base):
    stages = Pipeline(
        str(base), ROWS, plugins=["rope_scaling"], config={"model": {"init": "random"}, "data": {"max_length": 256}}
    ).stages()
    model = stages.plugins.hook.load_model(config=stages.config, options=stages.plugins.model_options(stages.config))
    assert model.config.rope_parameters["factor"] == FACTOR


def verdicts(run):
    return {each.name: each for each in run.prepare().verdicts() if each.name in ("rope scaling", "positions")}


def test_checks_advise_to_scale_and_say_how_far_it_reaches(base):
    found = verdicts(pipeline(base))["positions"]
    assert "rows have up to 256 tokens, but the model has 64 positions" in found.what
    assert found.fix == "set data.max_length=64, or stretch the model's rotary embeddings with -p rope_scaling"
    found = verdicts(pipeline(base, "rope_scaling:factor=2"))["positions"]
    assert "the model has 128 positions" in found.what
    assert "raise the factor of plugin rope_scaling" in found.fix
    for kind in TYPES:
        found = verdicts(pipeline(base, f"rope_scaling:type={kind}"))
        assert [*found] == ["rope scaling"]
        assert found["rope scaling"].what == f"positions are scaled: {kind} by 4, to 256 positions"


def test_checks_warn_of_rows_that_need_no_scaling_and_of_batches_with_dynamic(base):
    found = verdicts(pipeline(base, "rope_scaling:factor=2", length=64))["rope scaling"]
    assert (found.status, "no row is longer than 64 tokens" in found.what) == ("warn", True)
    run = pipeline(base, "rope_scaling:type=dynamic", per_device_train_batch_size=2)
    assert "a batch of 2 rows is scaled by the longest of them" in verdicts(run)["rope scaling"].what


def test_rows_beyond_the_scaled_positions_stop_the_run(base, tmp_path):
    with pytest.raises(RunError, match="the model has 128 positions"):
        pipeline(base, "rope_scaling:factor=2", output=tmp_path).run()


def test_every_option_of_a_type_is_passed_on(base):
    config = tiny_config(model={"name": str(base)}, data={"max_length": 256})
    given = {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False, "attention_factor": 1.5}
    made = RopeScaling(**given).model_options(config)["rope_parameters"]
    assert made == parameters("yarn", **given)["rope_parameters"]
    given = {"low_freq_factor": 2.0, "high_freq_factor": 8.0}
    made = RopeScaling(type="llama3", **given).model_options(config)["rope_parameters"]
    assert made == parameters("llama3", **given)["rope_parameters"]
    assert {field.name for field in dataclasses.fields(RopeScaling)} >= given.keys()
