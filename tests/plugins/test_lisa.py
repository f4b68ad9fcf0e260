"""Plugin lisa: a few random layers are trained at a time, and a resumed run draws the same ones."""

from __future__ import annotations

import logging
import re
from collections import Counter

import pytest
import torch
from optimizer_replay import QUICK, ROWS, TRAIN, FailAfter, Recorder, same_weights
from transformers import TrainerCallback

from sftkit import Pipeline
from sftkit.config.source import ConfigSource
from sftkit.errors import ConfigError
from sftkit.plugin.resolve import resolve
from sftkit.testing import run_problems, tiny_model, tiny_tokenizer
from sftkit_plugins.freeze import Freeze
from sftkit_plugins.lisa import LISA
from sftkit_plugins.lisa.drawing import drawn
from sftkit_plugins.muon import Muon
from sftkit_plugins.peft import PEFT

FOUR = {"num_hidden_layers": 4}
SIX = {"max_steps": 6, "lr_scheduler_type": "constant", "weight_decay": 0.5}


def trained(directory, plugins, callbacks=(), **train):
    """The model of a small run, and what was recorded."""
    recorder = Recorder()
    settings = {**TRAIN, **SIX, "output_dir": str(directory), **train}
    known = {"tokenizer": tiny_tokenizer(), "plugins": [*plugins, *QUICK], "train": settings}
    return Pipeline(tiny_model(**FOUR), ROWS, callbacks=[recorder, *callbacks], **known).run().model, recorder


def layer_of(name):
    found = re.search(r"\.layers\.(\d+)\.", name)
    return int(found[1]) if found else None


def layers_of(gradients):
    return sorted({layer_of(name) for name in gradients} - {None})


def by_hand(recorder, lisa, keep):
    """The same steps with torch's AdamW, whose step is called with the weights that have a gradient."""
    model = tiny_model(**FOUR)
    named = dict(model.named_parameters())
    groups = [
        {"params": [weight for name, weight in named.items() if "norm" not in name], "weight_decay": 0.5},
        {"params": [weight for name, weight in named.items() if "norm" in name], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=TRAIN["learning_rate"], fused=True)
    for step, gradients in enumerate(recorder.gradients):
        layers = drawn(42, step // lisa.interval, lisa.layers, 4)
        assert layers_of(gradients) == layers
        for name, weight in named.items():
            frozen = layer_of(name) not in (None, *layers)
            weight.grad = None if frozen else gradients[name].clone()
            if frozen and not keep:
                optimizer.state.pop(weight, None)
        optimizer.step()
    return model


@pytest.mark.parametrize("keep", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_equals_a_loop_by_hand(tmp_path, keep):
    lisa = LISA(layers=2, interval=2, keep_state=keep)
    model, recorder = trained(tmp_path / "run", [lisa])
    assert len({tuple(layers_of(each)) for each in recorder.gradients}) > 1
    assert same_weights(model, by_hand(recorder, lisa, keep))
    assert all(weight.requires_grad for weight in model.parameters())


class Watch(TrainerCallback):
    """Compares the weights before and after each step, and looks at the optimizer's state."""

    def __init__(self):
        self.changed, self.states = [], []

    def on_step_begin(self, args, state, control, model, **_):
        self.before = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def on_step_end(self, args, state, control, model, optimizer, **_):
        named = dict(model.named_parameters())
        self.changed.append([name for name, weight in named.items() if not weight.equal(self.before[name])])
        self.states.append(layers_of([name for name, weight in named.items() if weight in optimizer.state]))


@pytest.mark.parametrize(
    "plugins", [[], pytest.param([Muon()], marks=pytest.mark.slow), pytest.param([PEFT(r=2)], marks=pytest.mark.slow)]
)
def test_frozen_layers_are_neither_updated_nor_decayed_and_have_no_state(tmp_path, plugins):
    watch = Watch()
    trained(tmp_path / "run", [LISA(layers=1, interval=2), *plugins], [watch], gradient_accumulation_steps=2)
    for step, (changed, state) in enumerate(zip(watch.changed, watch.states, strict=True)):
        assert layers_of(changed) == drawn(42, step // 2, 1, 4)
        assert plugins or state == drawn(42, step // 2, 1, 4)
        assert bool(plugins and isinstance(plugins[0], PEFT)) or "lm_head.weight" in changed


@pytest.mark.parametrize("save", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("keep", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_run_that_is_resumed_within_an_interval_is_exact(tmp_path, save, keep):
    lisa = LISA(layers=2, interval=3, keep_state=keep)
    saving = {"save_strategy": "steps", "save_steps": save}
    whole, _ = trained(tmp_path / "whole", [lisa], **saving)
    with pytest.raises(ValueError, match="enough"):
        trained(tmp_path / "half", [lisa], [FailAfter(save + 1)], **saving)
    settings = {**TRAIN, **SIX, **saving, "output_dir": str(tmp_path / "half")}
    known = {"tokenizer": tiny_tokenizer(), "plugins": [lisa, *QUICK], "train": settings}
    resumed = Pipeline(tiny_model(**FOUR), ROWS, resume=True, **known).run()
    assert same_weights(whole, resumed.model)


def test_draws_depend_on_seed_and_period_and_are_even():
    draws = [tuple(drawn(1, period, 2, 6)) for period in range(600)]
    assert all(len({*each}) == 2 and [*each] == sorted(each) for each in draws)
    counts = Counter(layer for each in draws for layer in each)
    assert all(150 < counts[layer] < 250 for layer in range(6))
    assert draws != [tuple(drawn(2, period, 2, 6)) for period in range(600)]
    assert drawn(42, 0, 3, 8) == [2, 6, 7]  # the same in each version


def test_too_many_layers_stop_a_run_before_its_weights_are_loaded(tmp_path):
    settings = {**TRAIN, "output_dir": str(tmp_path / "run")}
    pipeline = Pipeline(tiny_model(), ROWS, tokenizer=tiny_tokenizer(), plugins=[LISA(layers=2)], train=settings)
    verdicts = [each for each in pipeline.prepare().verdicts() if each.status == "wrong"]
    assert "2 layers are to be trained at a time, and the model has 2" in verdicts[0].what


def test_what_cannot_change_while_it_trains_is_refused(monkeypatch):
    def what(**sections):
        return [problem.what for problem in run_problems(LISA(), **sections)]

    assert what() == []
    assert what(train={"optim": "galore_adamw"}) == ["galore_adamw cannot leave out layers"]
    assert what(train={"optim": "schedule_free_adamw"}) == ["schedule_free_adamw cannot leave out layers"]
    assert "compiled anew" in what(train={"torch_compile": True})[0]
    assert "compiled anew" in what(plugins={"compile": {"regions": "model"}})[0]
    checkpointing = {"gradient_checkpointing": True}
    assert what(train=checkpointing) == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert what() == []
    assert what(train=checkpointing) == ["DDP would wait for the gradients of frozen layers"]
    assert what(train={"ddp_find_unused_parameters": False}) == ["DDP would wait for the gradients of frozen layers"]
    assert "graph" in what(train={"ddp_static_graph": True})[0]
    found = {**checkpointing, "ddp_find_unused_parameters": True}
    assert what(train=found) == []
    kwargs = {"gradient_checkpointing_kwargs": {"use_reentrant": True}}
    assert what(train=found | kwargs) == ["DDP cannot find frozen layers inside reentrant checkpoints"]


@pytest.mark.parametrize("engine", ["fsdp", "tensor_parallel", "deepspeed", "schedule_free"])
def test_plugins_that_fix_what_is_trained_are_refused(engine):
    source = ConfigSource({"model": "demo", "data": "demo", "plugins": ["lisa", engine]})
    with pytest.raises(ConfigError, match="cannot be used together"):
        resolve(source)


def test_the_estimate_of_memory_counts_the_layers_of_one_period(tmp_path):
    def items(*plugins, **variables):
        settings = {**TRAIN, "output_dir": str(tmp_path / "run")}
        known = {"tokenizer": tiny_tokenizer(), "plugins": [*plugins], "train": settings}
        run = Pipeline(tiny_model(**FOUR), ROWS, **known).prepare()
        (verdict,) = [each for each in run.verdicts() if each.name == "memory"]
        return verdict.details["items"]

    whole, one = items(), items(LISA(layers=1))
    layer = sum(weight.numel() for weight in tiny_model().model.layers[0].parameters())
    assert whole["optimizer state"] - one["optimizer state"] == 3 * 8 * layer
    assert whole["weights"] == one["weights"]
    assert items(LISA(layers=1, keep_state=True))["optimizer state"] == whole["optimizer state"]


@pytest.mark.slow
def test_it_works_with_compiled_layers_checkpoints_and_frozen_weights(tmp_path):
    plugins = [LISA(layers=1, interval=1), Freeze(patterns=("embed_tokens",))]
    plain, _ = trained(tmp_path / "plain", plugins, max_steps=3)
    checkpointed, _ = trained(tmp_path / "checkpointed", [*plugins, "activations:checkpointing=full"], max_steps=3)
    assert same_weights(plain, checkpointed)
    compiled, recorder = trained(tmp_path / "compiled", [*plugins, "compile:backend=aot_eager"], max_steps=3)
    assert [layers_of(each) for each in recorder.gradients] == [drawn(42, step, 1, 4) for step in range(3)]
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_log_says_how_many_weights_are_trained_at_a_time(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="sftkit")
    trained(tmp_path / "run", [LISA(layers=1, interval=2)], max_steps=1)
    total = sum(weight.numel() for weight in tiny_model(**FOUR).parameters())
    assert f"lisa: 1 of 4 layers are trained at a time, at most 29,792 of {total:,} parameters" in caplog.text
