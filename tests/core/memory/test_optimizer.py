"""The size of an optimizer's state."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainingArguments

from sftkit.memory.optimizer import STATES, state_bytes

PLAIN = ["adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop", "adafactor"]


@pytest.mark.parametrize("name", [*PLAIN, "adamw_8bit", "lion_8bit"])
def test_an_optimizer_keeps_what_is_counted(make_model, batch, tmp_path, name):
    if "8bit" in name:
        pytest.importorskip("bitsandbytes")
    model = make_model(hidden_size=128)
    arguments = TrainingArguments(output_dir=str(tmp_path), optim=name, use_cpu=True, report_to="none")
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    optimizer = kind(model.parameters(), **options)
    model(input_ids=batch["input_ids"], labels=batch["labels"]).loss.backward()
    optimizer.step()
    kept = sum(
        value.nbytes
        for state in optimizer.state.values()
        for key, value in state.items()
        if torch.is_tensor(value) and value.dim() and "qmap" not in key
    )
    assert state_bytes(name, list(model.parameters())) == pytest.approx(kept, rel=0.001, abs=0)


def test_every_optimizer_that_needs_no_further_package_is_counted():
    assert set(PLAIN) <= set(STATES)


def test_an_unknown_optimizer_counts_as_adamw_with_a_warning(make_model, caplog):
    weights = list(make_model().parameters())
    assert state_bytes("galore_adamw", weights) == state_bytes("adamw_torch", weights)
    assert "galore_adamw" in caplog.text
