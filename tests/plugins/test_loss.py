"""Each loss equals an independent reference, in value and gradient, and what is asked for is measured."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional

from sftkit.errors import ConfigError
from sftkit.plugin.base import Plugin
from sftkit.run.pipeline import Pipeline
from sftkit.testing import plugin_set, run_problems, tiny_config, tiny_model, tiny_tokenizer
from sftkit.training.loss import HeadLoss, OutputHead, summed_loss
from sftkit_plugins.loss import Loss


def made_by(loss: HeadLoss):
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 8, requires_grad=True), torch.nn.Parameter(torch.randn(21, 8))
    targets = torch.randint(0, 21, (9,))
    total, outcome = summed_loss(loss, hidden, OutputHead(21, lambda given: given, weight), targets)
    total.backward()
    return hidden, weight, targets, total, outcome


def of(plugin: Plugin) -> HeadLoss:
    return plugin_set(plugin).hook.make_loss(model=None, config=tiny_config())


def assert_is(plugin: Plugin, reference) -> None:
    hidden, weight, targets, total, _ = made_by(of(plugin))
    again, same = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    expected = reference(again @ same.T, targets)
    expected.backward()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(hidden.grad, again.grad)
    torch.testing.assert_close(weight.grad, same.grad)


def test_nll_equals_torchs_cross_entropy():
    assert_is(Loss(), lambda logits, targets: functional.cross_entropy(logits, targets, reduction="sum"))


def test_label_smoothing_equals_torchs():
    assert_is(
        Loss(label_smoothing=0.1),
        lambda logits, targets: functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.1),
    )


def test_dft_weights_each_token_by_its_constant_probability():
    def reference(logits, targets):
        logp = torch.log_softmax(logits, 1).gather(1, targets[:, None])
        return -(logp.exp().detach() * logp).sum()

    assert_is(Loss(type="dft"), reference)


def test_entropy_is_measured_on_the_predictions():
    hidden, weight, _, _, outcome = made_by(of(Loss(entropy=True)))
    expected = torch.distributions.Categorical(logits=hidden @ weight.T).entropy()
    torch.testing.assert_close(outcome.measures["entropy"], expected.detach())


def test_smoothed_targets_with_dft_are_refused():
    problems = run_problems(Loss(type="dft", label_smoothing=0.1))
    assert "label_smoothing" in str(problems[0])


def test_a_smoothing_of_one_is_refused():
    with pytest.raises(ConfigError, match="label_smoothing"):
        Loss(label_smoothing=1.0)


def test_a_run_minimises_the_chosen_loss_and_logs_measures(tmp_path):
    data = [{"prompt": "### Question: ", "completion": "Paris is the capital of France."}] * 8
    train = {"max_steps": 6, "learning_rate": 1e-2, "logging_steps": 1, "use_cpu": True, "seed": 0}
    found = {}
    for name, plugin in (("nll", Loss(entropy=True)), ("dft", Loss(type="dft")), ("smooth", Loss(label_smoothing=0.2))):
        run = Pipeline(
            model=tiny_model(),
            data=data,
            eval=data[:2],
            tokenizer=tiny_tokenizer(),
            plugins=[plugin, "no:checks"],  # the held-out rows are training rows
            train={**train, "output_dir": str(tmp_path / name)},
        ).run()
        log = [json.loads(line) for line in (run.directory / "log.jsonl").read_text().splitlines()]
        found[name] = [entry for entry in log if "loss" in entry]
        assert found[name][-1]["token_accuracy"] >= found[name][0]["token_accuracy"]
        assert 0 <= run.metrics["eval_token_accuracy"] <= 1
        # the share of trained tokens is known: every step trains the same eight rows
        assert found[name][-1]["trained_tokens"] == 6 * found[name][0]["trained_tokens"]
    assert found["dft"][0]["loss"] < 0.1 * found["nll"][0]["loss"]  # an untrained token's own probability is small
    assert found["nll"][-1]["loss"] < found["nll"][0]["loss"]
    assert found["nll"][-1]["entropy"] < found["nll"][0]["entropy"]
