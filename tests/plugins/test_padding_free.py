"""Batches have no padding by default where the model is proved to keep documents apart; elsewhere the run says why."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from sftkit import Pipeline, Plugin, hookimpl
from sftkit.errors import ConfigError
from sftkit.plugin.select import parse_choice, select
from sftkit.testing import CHATML, tiny_conversations, tiny_model, tiny_tokenizer
from sftkit_plugins.compile import Compile
from sftkit_plugins.pad import PadCollator

TRAIN = {
    "max_steps": 4,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "gradient_accumulation_steps": 2,
}
FREE = "batches without padding; attention by varlen"


def run(directory, *plugins, model="llama", train=None, resume=False, options=None, **inputs):
    """A short run with held-out rows, and the shapes of the batches that the model gets in training and evaluation."""
    made = tiny_model(model, **(options or {})) if isinstance(model, str) else model
    return Pipeline(
        model=made,
        tokenizer=tiny_tokenizer(chat_template=CHATML),
        data=tiny_conversations(24),
        eval=tiny_conversations(7, first=100),
        plugins=[*plugins, "no:checks"],
        train={**TRAIN, "output_dir": str(directory), **(train or {})},
        resume=resume,
        **inputs,
    ).run()


def reason(result):
    return json.loads(Path(result.directory, "manifest.json").read_text())["batches"].get("flash_attn")


def assert_same_run(one, other):
    assert one.metrics == pytest.approx(other.metrics, rel=1e-4)
    for (name, a), b in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


@dataclasses.dataclass(frozen=True)
class Widths(Plugin):
    """Notes the shape of each batch that the model gets."""

    seen: list = dataclasses.field(default_factory=list)

    @hookimpl
    def trainer_callbacks(self):
        from transformers import TrainerCallback

        seen = self.seen

        class Noting(TrainerCallback):
            def on_train_begin(self, args, state, control, model=None, **_):
                def note(module, args, kwargs):
                    seen.append((module.training, tuple(kwargs["input_ids"].shape)))

                self.handle = model.register_forward_pre_hook(note, with_kwargs=True)

            def on_train_end(self, *_, **__):
                self.handle.remove()

        return [Noting()]


@pytest.mark.parametrize(
    ("plugins", "model", "options"),
    [
        ([], "llama", {}),
        (["packing"], "llama", {}),
        ([], "mixtral", {"output_router_logits": True}),
        pytest.param(["peft:r=2"], "llama", {}, marks=pytest.mark.slow),
        pytest.param([], "mistral", {"sliding_window": 6}, marks=pytest.mark.slow),
        pytest.param(["packing"], "mistral", {"sliding_window": 6}, marks=pytest.mark.slow),
        pytest.param([], "opt", {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0}, marks=pytest.mark.slow),
    ],
)
def test_a_run_equals_one_with_padded_batches(tmp_path, plugins, model, options):
    evaluated = {"eval_strategy": "steps", "eval_steps": 2}
    one = run(tmp_path / "one", *plugins, model=model, options=options, train=evaluated)
    other = run(tmp_path / "other", "no:flash_attn", *plugins, model=model, options=options, train=evaluated)
    assert reason(one) == FREE
    assert reason(other) is None
    assert_same_run(one, other)


def test_packing_tries_the_model_on_the_batches_that_are_chosen(tmp_path):
    """Padding behind the rows would have more positions than the model."""
    sizes = {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0}
    known = {"model": "opt", "options": sizes, "config": {"data": {"max_length": 1024}}}
    assert reason(run(tmp_path, "packing", train={"max_steps": 1}, **known)) == FREE


def test_metrics_of_completions_equal_those_with_padded_batches(tmp_path):
    known = {"config": {"evaluate": {"metrics": ["exact_match"], "max_new_tokens": 4}}}
    one, other = (run(tmp_path / str(len(plugins)), *plugins, **known) for plugins in ([], ["no:flash_attn"]))
    assert one.metrics["eval_exact_match"] == other.metrics["eval_exact_match"]


def test_training_and_evaluation_batches_are_one_row(tmp_path):
    widths = Widths()
    run(tmp_path, widths)
    assert {shape[0] for _, shape in widths.seen} == {1}
    assert {training for training, _ in widths.seen} == {True, False}


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_weights_of_a_whole_one(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    whole = run(tmp_path / "whole", train={**saving, "max_steps": 4})
    run(tmp_path / "resumed", train={**saving, "max_steps": 2})
    resumed = run(tmp_path / "resumed", train={**saving, "max_steps": 4}, resume=True)
    assert reason(resumed) == FREE
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


class Leaking(nn.Module):
    """A layer that adds the mean of all tokens before a token to it, whatever document they are of."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        hidden = self.inner(*args, **kwargs)
        return hidden + hidden.cumsum(1) / torch.arange(1, hidden.shape[1] + 1)[None, :, None]


def leaking_model():
    model = tiny_model("llama")
    model.model.layers[0].mlp = Leaking(model.model.layers[0].mlp)
    return model


def test_a_model_that_fails_the_proof_is_trained_as_without_the_plugin(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "sftkit"):
        one = run(tmp_path / "one", model=leaking_model())
    other = run(tmp_path / "other", "no:flash_attn", model=leaking_model())
    assert reason(one).startswith("padded batches: a document has a gradient by the tokens of others")
    assert f"flash_attn: {reason(one)}" in caplog.text
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("plugins", "model", "options", "expected"),
    [
        ([], "gpt2", {"attn_pdrop": 0.1}, "does not support dropout on the attention scores, attn_pdrop 0.1"),
        (["pad:to_multiple_of=8"], "llama", {}, "not that of the plugin pad, or rounds the length of batches"),
        pytest.param([Compile(backend="eager")], "llama", {}, "the layers are compiled", marks=pytest.mark.slow),
        pytest.param(
            ["peft:method=prompt_tuning"],
            "llama",
            {},
            "the adapter puts a prompt before each row",
            marks=pytest.mark.slow,
        ),
        pytest.param([], "bloom", {}, "loaded with the attention implementation eager", marks=pytest.mark.slow),
        pytest.param([], "gemma2", {}, "soft caps", marks=pytest.mark.slow),
    ],
)
def test_batches_stay_padded_with_the_reason_in_the_manifest(tmp_path, plugins, model, options, expected):
    widths = Widths()
    result = run(tmp_path, widths, *plugins, model=model, options=options, train={"max_steps": 1})
    assert reason(result).startswith("padded batches: ")
    assert expected in reason(result)
    assert {shape[0] for training, shape in widths.seen if training} == {2}


def test_a_model_loaded_with_another_attention_keeps_it(tmp_path):
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    result = run(tmp_path, model=model, train={"max_steps": 1})
    assert reason(result) == "padded batches: the model was loaded with the attention implementation eager"


def test_a_collator_among_the_inputs_makes_the_batches(tmp_path):
    made = []

    def collator(examples):
        made.append(len(examples))
        return PadCollator(0, to_multiple_of=4)(examples)

    result = run(tmp_path, collator=collator, train={"max_steps": 1})
    assert made
    assert reason(result).startswith("padded batches: the collator is not that of the plugin pad")


def test_compute_metrics_gets_predictions_row_by_row(tmp_path):
    seen = []

    def compute(predictions):
        seen.append(len(predictions.label_ids))
        return {"rows": float(len(predictions.label_ids))}

    result = run(tmp_path, compute_metrics=compute)
    assert reason(result) == FREE
    assert set(seen) == {7}


def test_asked_for_by_name_it_is_an_error_where_it_does_not_work(tmp_path):
    with pytest.raises(ConfigError, match="does not keep the documents of a batch apart"):
        run(tmp_path, "flash_attn", model=leaking_model())


def test_a_length_rounded_by_pad_is_an_error_beside_the_plugin_by_name(tmp_path):
    with pytest.raises(ConfigError, match="rows are not padded to a multiple of 8"):
        run(tmp_path, "flash_attn", "pad:to_multiple_of=8")


def test_without_pad_there_is_nothing_to_fall_back_to(tmp_path):
    with pytest.raises(ConfigError, match="no selected plugin makes padded batches"):
        run(tmp_path, "no:pad")


@dataclasses.dataclass(frozen=True)
class Unsuited(Plugin):
    """A plugin that cannot be used with flash_attn."""

    conflicts = ("flash_attn",)


def test_a_default_gives_way_to_a_plugin_that_conflicts_with_it():
    name = f"{Unsuited.__module__}:{Unsuited.__qualname__}"
    plugins, problems = select([parse_choice(name, [])])
    assert not problems
    assert "flash_attn" not in plugins.options()
    assert select([parse_choice(name, []), parse_choice("flash_attn", ["flash_attn"])])[1]


def test_named_without_options_it_does_not_fall_back():
    plugins, _ = select([parse_choice("flash_attn", ["flash_attn"])])
    assert next(item.name for item in plugins.selected) == "flash_attn"
    assert not plugins.options()["flash_attn"]["fallback"]
