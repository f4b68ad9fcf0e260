"""A training step: one divisor for the whole window, and packed rows that train like single ones."""

from __future__ import annotations

import pytest
import torch

from sftkit.data.documents import Span
from sftkit.data.encode import encode
from sftkit.testing import tiny_config, tiny_model, tiny_tokenizer
from sftkit.training.arguments import training_arguments
from sftkit.training.loss import HeadLoss
from sftkit.training.trainer import TokenLossTrainer

SGD = {"learning_rate": 0.1, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0}


def test_the_evaluation_loss_is_the_mean_over_all_trained_tokens(make_run, held_out):
    train = {"per_device_eval_batch_size": 3, "max_steps": 1, "eval_on_start": True}
    result = make_run(eval=held_out, train=train).run()
    model, total, count = tiny_model().eval(), 0.0, 0
    for row in held_out:
        made = encode([[Span(row["prompt"], False), Span(row["completion"], True)]], tiny_tokenizer(), "bos_eos")
        ids, labels = torch.from_numpy(made.ids_S).long()[None], torch.from_numpy(made.labels_S).long()[None]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[:, :-1].transpose(1, 2)
            total += torch.nn.functional.cross_entropy(logits, labels[:, 1:], reduction="sum").item()
        count += int((labels != -100).sum())
    assert result.metrics["eval_loss_before"] == pytest.approx(total / count, rel=1e-5)
    assert result.metrics["eval_loss"] != result.metrics["eval_loss_before"]


def test_only_the_proportions_of_weights_matter(make_run, rows, distance):
    train = {"learning_rate": 0.1, "optim": "sgd", "max_grad_norm": 0}
    found = []
    for name, weight in (("small", 1e-13), ("half", 0.5)):
        data = [{**row, "weight": weight} for row in rows]
        found.append(make_run(name, data=data, train=train).run())
    assert found[0].metrics["train_loss"] == pytest.approx(found[1].metrics["train_loss"], rel=1e-4)
    assert distance(found[0].model, found[1].model) < 1e-5


@pytest.mark.parametrize("plugins", [pytest.param([], marks=pytest.mark.slow), ["peft"]])
def test_mixed_precision_uses_the_loss_head_and_leaves_no_trace(make_run, held_out, caplog, plugins):
    train = {"max_steps": 4, "learning_rate": 1e-2}
    options = {"eval": held_out, "plugins": plugins}
    exact = make_run("exact", model=tiny_model("gemma2"), train=train, **options).run()
    mixed = make_run("mixed", model=tiny_model("gemma2"), train={**train, "bf16": True}, **options).run()
    assert "the logits of every position" not in caplog.text
    assert mixed.metrics["eval_loss"] != exact.metrics["eval_loss"]
    assert mixed.metrics["eval_loss"] == pytest.approx(exact.metrics["eval_loss"], rel=0.01)
    causal = mixed.model.get_base_model() if plugins else mixed.model
    assert not {"forward", "_original_forward"} & set(vars(causal))
    assert "forward" not in vars(causal.lm_head)


def test_the_train_loss_is_that_of_the_last_call_of_train(make_run, tmp_path):
    prepared = make_run().prepare()
    settings = {"max_steps": 2, "learning_rate": 0.0, "use_cpu": True, "save_strategy": "no"}
    settings |= {"train_sampling_strategy": "sequential", "output_dir": str(tmp_path)}
    model = tiny_model()
    trainer = TokenLossTrainer(
        loss=HeadLoss(),
        model=model,
        args=training_arguments(tiny_config(train=settings), has_eval=False),
        data_collator=prepared.collator,
        train_dataset=prepared.data.train,
    )
    first = trainer.train().training_loss
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    second = trainer.train().training_loss
    assert second > 1.1 * first
    assert trainer.train().training_loss == second
