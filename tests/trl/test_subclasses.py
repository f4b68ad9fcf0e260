"""Subclasses with the signatures of 2024, and models with their own loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, SequentialSampler
from transformers import LlamaForCausalLM

from sftkit.testing import tiny_model
from sftkit_trl import SFTTrainer


@pytest.fixture
def made(config, rows, tokenizer):
    """Makes a trainer of a subclass."""

    def of(kind: type[SFTTrainer], model: Any = None, **options: Any) -> SFTTrainer:
        args = config(dataset_text_field="text", max_seq_length=64, **options)
        model = tiny_model() if model is None else model
        return kind(model, args=args, train_dataset=rows, eval_dataset=rows, tokenizer=tokenizer)

    return of


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class Doubled(SFTTrainer):
    """Twice the model's own loss."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
        outputs = model(**inputs)
        loss = 2 * outputs["loss"]
        return (loss, outputs) if return_outputs else loss


class ByHand(SFTTrainer):
    """The loss from logits and labels."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **rest: Any) -> Any:
        labels = inputs.pop("labels")
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        loss = 2 * cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return (loss, {"logits": logits}) if return_outputs else loss


class OfSuper(SFTTrainer):
    """Twice the loss of the parent class."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        assert outputs["logits"].shape == (*inputs["input_ids"].shape, 320)
        return (2 * loss, outputs) if return_outputs else 2 * loss


@pytest.mark.parametrize("kind", [Doubled, ByHand, OfSuper])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_subclasss_loss_is_averaged_over_accumulated_batches(made, kind, steps) -> None:
    options = {"gradient_accumulation_steps": steps, "per_device_train_batch_size": 4 // steps, "max_steps": 1}
    trainer, plain = made(kind, **options), made(SFTTrainer, **options)
    trainer.train()
    plain.train()
    assert losses(trainer) == pytest.approx([2 * loss for loss in losses(plain)], rel=2e-2)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(2 * plain_loss(trainer.model, trainer), rel=1e-4)


def plain_loss(model: Any, trainer: SFTTrainer) -> float:
    (batch,) = trainer.get_eval_dataloader()
    with torch.no_grad():
        return model.eval()(batch["input_ids"], batch["attention_mask"], labels=batch["labels"]).loss.item()


def test_a_loss_of_2024_may_come_from_a_mixin(config, rows, tokenizer) -> None:
    class Mixin:
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
            return super().compute_loss(model, inputs, return_outputs)

    class Mixed(Mixin, SFTTrainer):
        pass

    trainer = Mixed(tiny_model(), args=config(dataset_text_field="text"), train_dataset=rows, tokenizer=tokenizer)
    assert trainer.train().training_loss > 0


class OwnStep(SFTTrainer):
    """The training step as written in 2024."""

    def training_step(self, model: Any, inputs: Any) -> Any:
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        self.accelerator.backward(loss)
        return loss.detach() / self.args.gradient_accumulation_steps


def test_training_step_can_be_overridden(made) -> None:
    trainer, plain = made(OwnStep), made(SFTTrainer)
    trainer.train()
    plain.train()
    assert losses(trainer) == pytest.approx(losses(plain), rel=1e-5)


class Logging(SFTTrainer):
    """Logs one more value."""

    def log(self, logs: dict[str, float]) -> None:
        super().log({**logs, "extra": 1.0})


def test_log_can_be_overridden(made) -> None:
    trainer = made(Logging)
    trainer.train()
    assert all(entry["extra"] == 1.0 for entry in trainer.state.log_history)


class Predicting(SFTTrainer):
    """Notes the shapes of each prediction."""

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        self.shapes = (tuple(logits.shape), tuple(labels.shape))
        return loss, logits, labels


def test_prediction_step_can_be_overridden(made) -> None:
    trainer = made(Predicting)
    predicted = trainer.predict(trainer.eval_dataset)
    assert trainer.shapes[0] == (*trainer.shapes[1], 320)
    assert predicted.predictions.shape == trainer.shapes[0]


class Ordered(SFTTrainer):
    """Its own loader, with rows in order."""

    def get_train_dataloader(self) -> DataLoader:
        options = {"batch_size": self._train_batch_size, "collate_fn": self.data_collator}
        loader = DataLoader(self.train_dataset, sampler=SequentialSampler(self.train_dataset), **options)
        return self.accelerator.prepare(loader)


def test_get_train_dataloader_can_be_overridden(made, rows, tokenizer) -> None:
    trainer = made(Ordered)
    first = next(iter(trainer.get_train_dataloader()))
    assert first["input_ids"][0].tolist()[:8] == tokenizer(rows["text"][0])["input_ids"][:8]
    assert trainer.train().global_step == 2


class InOrder(SFTTrainer):
    """Its own sampler, without the argument that transformers passes."""

    def _get_train_sampler(self) -> Any:
        return SequentialSampler(self.train_dataset)


def test_get_train_sampler_can_be_overridden(made, rows, tokenizer) -> None:
    first = next(iter(made(InOrder).get_train_dataloader()))
    assert first["input_ids"][0].tolist()[:8] == tokenizer(rows["text"][0])["input_ids"][:8]


class Optimizing(SFTTrainer):
    """Its own optimizer and schedule."""

    def create_optimizer(self, *_: Any) -> Any:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        return self.lr_scheduler


def test_create_optimizer_and_scheduler_can_be_overridden(made) -> None:
    trainer = made(Optimizing)
    trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), tiny_model().parameters(), strict=True))


class Preparing(SFTTrainer):
    """Its own preparation of data."""

    def _prepare_dataset(self, dataset: Any, *arguments: Any, **options: Any) -> Any:
        self.arguments = arguments
        made = {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1]}
        return dataset.map(lambda row: made, remove_columns=dataset.column_names)


def test_prepare_dataset_can_be_overridden(made, tokenizer) -> None:
    trainer = made(Preparing)
    assert trainer.arguments[:4] == (tokenizer, False, "text", 64)
    assert [list(row["input_ids"]) for row in trainer.train_dataset] == [[5, 6, 7]] * 7
    assert [list(row["input_ids"]) for row in trainer.eval_dataset] == [[5, 6, 7]] * 7
    assert trainer.train().global_step == 2


class OfTrl07(SFTTrainer):
    """The method as TRL 0.7 called it."""

    def _prepare_dataset(
        self,
        dataset: Any,
        tokenizer: Any,
        packing: Any,
        dataset_text_field: Any,
        max_seq_length: Any,
        formatting_func: Any,
        infinite: Any,
        num_of_sequences: Any,
        chars_per_token: Any,
    ) -> Any:
        self.received = [packing, dataset_text_field, max_seq_length, infinite, num_of_sequences, chars_per_token]
        return dataset.map(lambda row: {"input_ids": tokenizer(row["text"])["input_ids"]})


class OfTrl12(SFTTrainer):
    """The method as TRL 0.12 called it."""

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        packing: Any,
        dataset_text_field: Any,
        *,
        max_seq_length: Any,
        **rest: Any,
    ) -> Any:
        self.received = [packing, dataset_text_field, max_seq_length, None, rest["num_of_sequences"], 3.6]
        return super()._prepare_dataset(dataset, processing_class, packing, dataset_text_field, max_seq_length, **rest)


@pytest.mark.parametrize("kind", [OfTrl07, OfTrl12])
def test_prepare_dataset_may_have_the_signature_of_its_version(made, kind) -> None:
    trainer = made(kind)
    assert trainer.received == [False, "text", 64, None, 1024, 3.6]
    assert trainer.train().global_step == 2


class Reading(SFTTrainer):
    """Reads the trainer's attributes while it prepares data, and one that it set itself before."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.mine = 1
        super().__init__(*arguments, **options)

    def _prepare_dataset(self, dataset: Any, *arguments: Any, **options: Any) -> Any:
        self.read = (self.args, self.tokenizer, self.model, self.train_dataset, self.dataset_num_proc, self.mine)
        return super()._prepare_dataset(dataset, *arguments, **options)


def test_prepare_dataset_finds_the_attributes_of_the_trainer(made, tokenizer, rows) -> None:
    trainer = made(Reading)
    args, found, model, train_dataset, processes, mine = trainer.read
    assert (args, found, model, train_dataset) == (trainer.args, tokenizer, trainer.model, rows)
    assert (processes, mine) == (None, 1)


@pytest.mark.parametrize("training", [True, False])
def test_compute_loss_can_be_called_directly(made, training) -> None:
    trainer = made(SFTTrainer)
    batch = next(iter(trainer.get_train_dataloader()))
    model = trainer.model.train(training)
    loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    loss.backward()
    expected = tiny_model()
    outputs_of_model = expected(**batch)
    outputs_of_model.loss.backward()
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(outputs["logits"], outputs_of_model.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trainer.compute_loss(model, batch), loss)


def test_prepare_dataset_is_called_with_the_packing_of_each_set(made) -> None:
    calls = []

    class Noting(SFTTrainer):
        def _prepare_dataset(self, dataset: Any, tokenizer: Any, packing: bool, *arguments: Any, **options: Any) -> Any:
            calls.append(packing)
            return super()._prepare_dataset(dataset, tokenizer, packing, *arguments, **options)

    trainer = made(Noting, packing=True, eval_packing=False)
    assert calls == [True, False]
    assert "position_ids" in trainer.train_dataset.column_names
    assert len(trainer.eval_dataset) == 7


class Shorter(SFTTrainer):
    """The usual preparation, of fewer rows."""

    def _prepare_dataset(self, dataset: Any, *arguments: Any, **options: Any) -> Any:
        return super()._prepare_dataset(dataset.select(range(4)), *arguments, **options)


@pytest.mark.parametrize("packing", [False, True])
def test_an_overridden_prepare_dataset_can_call_super(made, packing) -> None:
    trainer = made(Shorter, packing=packing)
    assert len(trainer.train_dataset) == (1 if packing else 4)
    assert trainer.train().global_step == 2


class OwnLoss(LlamaForCausalLM):
    """A Llama whose loss is larger by one."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **rest: Any) -> Any:
        outputs = super().forward(input_ids, attention_mask, labels=labels, **rest)
        if labels is not None:
            outputs.loss = outputs.loss + 1
        return outputs


def test_the_loss_of_the_models_own_class_is_trained(made) -> None:
    trainer, plain = made(SFTTrainer, OwnLoss(tiny_model().config)), made(SFTTrainer)
    trainer.model.load_state_dict(tiny_model().state_dict())
    trainer.train()
    plain.train()
    assert losses(trainer)[0] == pytest.approx(losses(plain)[0] + 1, rel=1e-4)


class Wrapper(torch.nn.Module):
    """A module around a model."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_model()
        self.config = self.inner.config

    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None) -> Any:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


def test_a_plain_torch_module_is_trained(made) -> None:
    trainer, plain = made(SFTTrainer, Wrapper()), made(SFTTrainer)
    trainer.train()
    plain.train()
    assert losses(trainer)[0] == pytest.approx(losses(plain)[0], rel=1e-4)
