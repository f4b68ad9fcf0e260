"""Plugin schedule_free: the average of the weights is what is evaluated and saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from optimizer_replay import HELD_OUT, QUICK, ROWS, TRAIN, log_of, replayed, require_exact_resume, same_weights, trained
from safetensors.torch import load_file

from sftkit import Pipeline
from sftkit.config.source import ConfigSource
from sftkit.errors import ConfigError
from sftkit.plugin.resolve import resolve
from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit_plugins.schedule_free import ScheduleFree

schedulefree = pytest.importorskip("schedulefree")
CONSTANT = {"lr_scheduler_type": "constant"}
WARM = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}


def by_hand(**options):
    """Makes the package's optimizer for a llama, ready to train."""

    def make(model):
        named = dict(model.named_parameters())
        groups = [
            {"params": [weight for name, weight in named.items() if "norm" not in name], "weight_decay": 0.1},
            {"params": [weight for name, weight in named.items() if "norm" in name], "weight_decay": 0.0},
        ]
        made = schedulefree.AdamWScheduleFree(groups, lr=TRAIN["learning_rate"], **options)
        made.train()
        return [made]

    return make


def test_a_run_equals_a_loop_with_the_package(tmp_path):
    model, recorder = trained(tmp_path / "run", [ScheduleFree(r=1.0)], **CONSTANT)
    other, (optimizer,) = replayed(model, recorder, by_hand(r=1.0), lambda step: 1.0)
    assert not same_weights(model, other)
    optimizer.eval()
    assert same_weights(model, other)
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in other.named_parameters() if name in saved)


@pytest.mark.slow
def test_the_warm_up_is_that_of_the_schedule(tmp_path):
    model, recorder = trained(tmp_path / "run", [ScheduleFree()], **WARM)
    other, (optimizer,) = replayed(model, recorder, by_hand(), lambda step: min(step / 2, 1.0))
    optimizer.eval()
    assert same_weights(model, other)
    assert [entry["learning_rate"] for entry in log_of(tmp_path / "run")][:2] == [0.0, 0.005]


@pytest.mark.slow
@pytest.mark.parametrize(
    "train", [CONSTANT, pytest.param({**WARM, "gradient_accumulation_steps": 2}, marks=pytest.mark.slow)]
)
def test_a_resumed_run_is_exact(tmp_path, train):
    require_exact_resume(tmp_path, [ScheduleFree()], **train)


@pytest.mark.slow
def test_a_checkpoint_has_the_average_that_is_evaluated(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, **CONSTANT}
    trained(tmp_path / "long", [ScheduleFree()], **saving)
    two, _ = trained(tmp_path / "two", [ScheduleFree()], **{**saving, "max_steps": 2})
    saved = load_file(tmp_path / "long" / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in two.named_parameters() if name in saved)


def test_the_best_model_is_loaded_as_it_was_evaluated(tmp_path):
    train = {**TRAIN, **CONSTANT, "max_steps": 3, "output_dir": str(tmp_path / "run"), "save_strategy": "steps"}
    train |= {"save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    train |= {"metric_for_best_model": "loss", "greater_is_better": True}
    known = {"tokenizer": tiny_tokenizer(), "plugins": [ScheduleFree(), *QUICK], "train": train, "eval": HELD_OUT}
    result = Pipeline(tiny_model(), ROWS, **known).run()
    best = load_file(Path(tmp_path, "run", "checkpoint-2", "model.safetensors"))
    assert all(torch.equal(best[name], weight) for name, weight in result.model.named_parameters() if name in best)


REFUSED = {
    "default schedule": ({}, {}, r"the schedule is linear -> set train.lr_scheduler_type: constant$"),
    "schedule": ({"lr_scheduler_type": "cosine", "warmup_steps": 3}, {}, "is cosine -> .*: constant_with_warmup"),
    "warm-up": ({**CONSTANT, "warmup_steps": 3}, {}, "ignores train.warmup_steps, which is 3"),
    "optimizer": ({**CONSTANT, "optim": "adamw_torch"}, {}, "plugin schedule_free takes its place"),
    "beta": ({**CONSTANT, "adam_beta1": 0.0}, {}, "must be above 0"),
    "skipping": (CONSTANT, {"on_nan": "skip"}, "cannot skip a step"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_it_cannot_do_is_refused(kind):
    train, run, message = REFUSED[kind]
    values = {"model": "demo", "data": "demo", "train": train, "run": run, "plugins": ["schedule_free"]}
    with pytest.raises(ConfigError, match=message):
        resolve(ConfigSource(values))
