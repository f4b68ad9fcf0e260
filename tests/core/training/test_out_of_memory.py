"""Batches that are too large for the device are split, with the same result."""

from __future__ import annotations

import functools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from sftkit.errors import RunError
from sftkit.testing import tiny_model
from sftkit.training.batches import micro_batches
from sftkit.training.oom import RowLimit
from sftkit.training.trainer import TokenLossTrainer

SGD = {"learning_rate": 0.1, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0}


class ShortOfMemory:
    """Makes a class of models run out of memory in the forward or backward of too many rows, as torch does."""

    def __init__(self, monkeypatch, model, rows, where):
        self.failures, self.largest = 0, 0
        forward = type(model).forward

        def limited(module, *arguments, **options):
            output = forward(module, *arguments, **options)
            ids = options["input_ids"]
            if isinstance(ids, FakeTensor):  # an estimate of the run's memory
                return output
            positions = options.get("position_ids")  # they restart at each document of a joined row
            examples = len(ids) if positions is None else int((positions == 0).sum())
            if examples > rows and where == "forward":
                self.fail()
            if examples > rows and where == "backward" and torch.is_grad_enabled():
                hidden = module.model.layers[0].mlp.down_proj.weight
                handle = hidden.register_hook(lambda _: (handle.remove(), self.fail()))
            self.largest = max(self.largest, examples if examples <= rows else 0)
            return output

        monkeypatch.setattr(type(model), "forward", limited)

    def fail(self):
        self.failures += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


@pytest.fixture
def make_run(make_run):
    """Padded batches, since memory is short by the rows of a batch here."""
    return functools.partial(make_run, plugins=["no:flash_attn"])


@pytest.mark.parametrize("where", ["forward", pytest.param("backward", marks=pytest.mark.slow)])
def test_a_split_batch_gives_the_same_gradients_and_one_warning(make_run, distance, log_of, monkeypatch, caplog, where):
    train = {**SGD, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1}
    whole = make_run("whole", train=train).run()
    model = tiny_model()
    memory = ShortOfMemory(monkeypatch, model, 2, where)
    split = make_run("split", model=model, train=train).run()
    assert memory.failures == 1
    assert memory.largest == 2
    assert distance(whole.model, split.model) < 1e-6
    assert whole.metrics["train_loss"] == pytest.approx(split.metrics["train_loss"], rel=1e-5)
    for one, two in zip(log_of(whole), log_of(split), strict=True):
        assert one.get("trained_tokens") == two.get("trained_tokens")
        assert one.get("token_accuracy") == pytest.approx(two.get("token_accuracy"))
    (warning,) = [record.message for record in caplog.records if "out of memory" in record.message]
    assert "computing 2 rows at once from now on, with the same gradients" in warning


@pytest.mark.slow
def test_a_split_batch_without_padding_gives_the_same_gradients(make_run, distance, monkeypatch):
    train = {**SGD, "per_device_train_batch_size": 4}
    whole = make_run("whole", train=train, plugins=["flash_attn"]).run()
    model = tiny_model()
    memory = ShortOfMemory(monkeypatch, model, 2, "backward")
    split = make_run("split", model=model, train=train, plugins=["flash_attn"]).run()
    assert memory.failures == 1
    assert memory.largest == 2
    assert distance(whole.model, split.model) < 1e-6


@pytest.mark.slow
def test_a_failure_later_in_the_window_adds_no_gradient_twice(make_run, distance, monkeypatch):
    train = {**SGD, "max_steps": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    whole = make_run("whole", train=train).run()
    calls = []
    step = TokenLossTrainer.compute_loss

    def fails_once(self, model, inputs, *arguments, **options):
        loss = step(self, model, inputs, *arguments, **options)
        calls.append(len(inputs["input_ids"]))
        if len(calls) == 2:

            def fail(_):
                raise torch.OutOfMemoryError("CUDA out of memory.")

            loss.register_hook(fail)
        return loss

    monkeypatch.setattr(TokenLossTrainer, "compute_loss", fails_once)
    split = make_run("split", train=train).run()
    assert calls == [4, 4, 2, 2, 2, 2]
    assert distance(whole.model, split.model) < 1e-6


@pytest.mark.slow
def test_a_split_batch_of_experts_has_the_auxiliary_loss_of_its_parts(make_run, distance, monkeypatch):
    model = tiny_model("mixtral", output_router_logits=True, router_aux_loss_coef=10.0)
    train = {**SGD, "max_steps": 1, "train_sampling_strategy": "sequential"}
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    by_hand = make_run("by_hand", model=model, train={**train, **halves}).run()
    ShortOfMemory(monkeypatch, model, 2, "forward")
    split = make_run("split", model=model, train={**train, "per_device_train_batch_size": 4}).run()
    assert distance(by_hand.model, split.model) < 1e-6


def test_a_split_evaluation_gives_the_same_loss(make_run, held_out, monkeypatch):
    train = {"max_steps": 1, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 8}
    whole = make_run("whole", eval=held_out, train=train).run()
    ShortOfMemory(monkeypatch, tiny_model(), 3, "forward")
    split = make_run("split", eval=held_out, train=train).run()
    assert split.metrics["eval_loss"] == pytest.approx(whole.metrics["eval_loss"], rel=1e-6)


def test_a_single_row_that_does_not_fit_is_an_error_with_its_length(make_run, monkeypatch):
    ShortOfMemory(monkeypatch, tiny_model(), 0, "forward")
    with pytest.raises(RunError, match=r"out of memory with a single row of \d+ tokens.*data.max_length"):
        make_run().run()


def test_a_run_that_cannot_split_batches_fails_with_the_reason():
    def fail(parts):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    batch = {"input_ids": torch.ones(4, 7, dtype=torch.long)}
    limit = RowLimit(training=False, obstacle="process 1 cannot split its batches")
    with pytest.raises(RunError, match=r"per_device_eval_batch_size: .*4 rows of 7 tokens; process 1 .* -> lower it$"):
        limit.run(fail, batch)


def test_a_tensor_without_rows_cannot_be_split():
    batch = {"input_ids": torch.ones(4, 7), "pixel_values": torch.ones(9, 3)}
    with pytest.raises(RunError, match=r"pixel_values of shape \(9, 3\) cannot be split by rows"):
        list(micro_batches(batch, 2))
