"""Values that are measured while training, without waiting for the device."""

from __future__ import annotations

import time
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sftkit.training.measures import Measures
from sftkit.training.trainer import TokenLossTrainer


class Waits(TorchDispatchMode):
    """Counts operations for which the host waits for a GPU: a number that is read, a size that depends on values."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_a_step_waits_no_more_often_than_the_models_own_forward(make_run, monkeypatch):
    found, step = [], TokenLossTrainer.training_step

    def watched(self, model, inputs, *arguments):
        with Waits() as alone, torch.no_grad():
            model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        with Waits() as whole:
            loss = step(self, model, inputs, *arguments)
        found.append((whole.number, alone.number))
        return loss

    monkeypatch.setattr(TokenLossTrainer, "training_step", watched)
    make_run(plugins=["loss:entropy=true", "no:flash_attn"], train={"max_steps": 4}).run()
    for whole, alone in found[1:]:  # in the first step, the head inspects the model
        assert whole <= alone


def test_the_rate_does_not_count_evaluations_and_checkpoints(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    accelerator = SimpleNamespace(device=torch.device("cpu"), reduce=lambda sums, reduction: sums)
    measures = Measures()
    measures.begin_batch()
    now[0] += 2.0
    measures.add(100, 50, {"token_accuracy": torch.ones(50)})
    with measures.paused():
        now[0] += 30.0
    entry = measures.log_entry(accelerator, trained_before=7)
    assert entry == {"tokens_per_second": 50.0, "trained_tokens": 57, "token_accuracy": 1.0}
    assert measures.log_entry(accelerator, trained_before=57) == {}


def test_a_repeated_window_counts_once():
    accelerator = SimpleNamespace(device=torch.device("cpu"), reduce=lambda sums, reduction: sums)
    measures = Measures()
    for repeated in (False, True):
        measures.begin_window()
        measures.begin_batch()
        measures.add(10, 5, {})
        if repeated:
            measures.repeat_window()
            measures.add(10, 5, {})
    assert measures.log_entry(accelerator, trained_before=0)["trained_tokens"] == 10
