"""`transformers.Trainer` with a loss over trained tokens, and measures that need no further forward."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch

from sftkit.data.stream import Stream
from sftkit.errors import ConfigError, Problem
from sftkit.training.attributes import replaced
from sftkit.training.batches import ROWS, Batch, WithPositions, window_weight
from sftkit.training.completion_metrics import CompletionMetrics
from sftkit.training.evaluation import RowSums, gathering_once, require_metric, token_means
from sftkit.training.head import LossHead
from sftkit.training.loaders import (
    NumberedRows,
    NumberedStream,
    RowSources,
    outlasting_signals,
    stream_loader,
    without_numbers,
)
from sftkit.training.loss import HeadLoss
from sftkit.training.measures import Measures, or_one, peak_memory, read_sums
from sftkit.training.oom import RowLimit, Window
from sftkit.training.saving_trainer import SavingTrainer

logger = logging.getLogger("sftkit")


class TokenLossTrainer(SavingTrainer):
    """Divides the loss by the trained tokens of the whole accumulation window, over all processes.

    The model never sees the labels, so its own reduction cannot interfere, and it computes only the logits of trained
    positions. The evaluation loss is the mean over all trained tokens of the set, not over batches. A batch that is too
    large for the device is split, with the same gradients.

    Args:
        loss: the loss to minimise; with None it is the model's own, as in the stock Trainer.
        data_collator: makes the batches.
        completing: computes metrics of completions at each evaluation; None for no such metrics.
        sources: of the data sets with several sources, where their tokens come from: the loss of each source is logged.
        arguments: of `GuardedTrainer` and `transformers.Trainer`.
    """

    data_collator: Any
    processing_class: Any
    train_dataset: Any
    eval_dataset: Any

    def __init__(
        self,
        *,
        loss: HeadLoss | None,
        data_collator: Any,
        completing: CompletionMetrics | None = None,
        sources: Sequence[RowSources] = (),
        **arguments: Any,
    ) -> None:
        super().__init__(data_collator=data_collator, **arguments)
        if loss is not None:  # it is divided by the trained tokens of the window
            self.model_accepts_loss_kwargs = True
            self.loss_is_scaled_for_ga = True
            self._loss_shifts_labels = True
        self._loss, self._completing = loss, completing
        self._chosen: Any = None  # the collator that a plugin chose
        self._head: LossHead | None = None
        # The loss is that of the model or of a subclass.
        self._own_loss = loss is None or type(self).compute_loss is not TokenLossTrainer.compute_loss
        self._sources = () if self._own_loss else tuple(sources)
        self.measures = Measures(self._names_of(self.train_dataset))
        obstacle = self._obstacle_to_splitting()
        self._train_rows = RowLimit(training=True, obstacle=obstacle)
        self._eval_rows = RowLimit(training=False, obstacle=obstacle)
        self._window = Window(self._train_rows)
        self._evaluated: list[RowSums] | None = None  # by the evaluation that is running
        self._evaluated_sources: list[str] = []

    def _sources_of(self, dataset: Any) -> RowSources | None:
        return next((each for each in self._sources if each.rows is dataset), None)

    def _names_of(self, dataset: Any) -> list[str]:
        found = self._sources_of(dataset)
        return found.names if found else []

    def _obstacle_to_splitting(self) -> str:
        if self._own_loss:
            return "batches with a custom compute_loss cannot be split"
        if self.args.world_size > 1 or self.sharded:
            return f"process {self.args.process_index} cannot split its batches, since the others would wait for it"
        return ""

    @property
    def loss_head(self) -> LossHead:
        """The object that asks the model for losses."""
        if self._head is None:
            assert self._loss is not None
            self._head = LossHead(self.model, self._loss)
        return self._head

    def _asked_for_losses(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._loss is None else self.loss_head.installed()

    def loss_held(self, rows: Any, collator: Any) -> contextlib.AbstractContextManager[Any]:
        """The context of the loss around trainings and evaluations; see `HeadLoss.held`."""
        return contextlib.nullcontext() if self._loss is None else self._loss.held(self.model, rows, collator)

    def call_model_init(self, trial: Any = None) -> Any:
        """As in the Trainer; the new model gets a new loss head."""
        self._head = None
        return super().call_model_init(trial)

    def get_train_dataloader(self) -> Any:
        """As in the Trainer; a stream is not divided among processes again."""
        rows = self.train_dataset
        if not isinstance(rows, Stream):
            return super().get_train_dataloader()
        pin_memory, device = self.args.dataloader_pin_memory, self.accelerator.device
        numbered = NumberedStream(rows) if self._numbers_rows else rows
        return stream_loader(numbered, self._train_batch_size, self._batch_collator(rows), pin_memory, device)

    @property
    def _numbers_rows(self) -> bool:
        """Whether batches carry the numbers of their rows, for messages."""
        return self.finite is not None and not self._own_loss

    def _get_dataloader(self, dataset: Any, *arguments: Any, **options: Any) -> Any:
        sources = self._sources_of(dataset)
        numbered = dataset is self.train_dataset and self._numbers_rows
        if sources or numbered:
            dataset = NumberedRows(dataset, sources.column if sources else None, numbered)
        with replaced(self, "data_collator", self._batch_collator(dataset)):
            loader = super()._get_dataloader(dataset, *arguments, **options)
        return loader if self.stopping is None else outlasting_signals(loader)

    def _batch_collator(self, dataset: Any) -> Any:
        """The collator of a data set, with what the training step needs to know of each batch."""
        # compute_metrics gets predictions row by row
        own = self.compute_metrics is not None and without_numbers(dataset) is not self.train_dataset
        collator = self.data_collator if own or self._chosen is None else self._chosen
        if self._own_loss or self._loss is None:
            return collator
        return WithPositions(collator, self._loss.token_values)

    def collating(self, collator: Any) -> contextlib.AbstractContextManager[None]:
        """Inside, batches are made by this collator; those of evaluations with ``compute_metrics`` by the own one."""
        return replaced(self, "_chosen", collator)

    def _inner_training_loop(self, *arguments: Any, **options: Any) -> Any:
        checkpoint, args = options.get("resume_from_checkpoint"), self.args
        read = read_sums(checkpoint, args.process_index, self._sharing, args.device) if checkpoint else {}
        self.measures = Measures(self._names_of(self.train_dataset), read)
        with self._asked_for_losses():
            return super()._inner_training_loop(*arguments, **options)

    def get_batch_samples(self, *arguments: Any) -> Any:
        """The batches of an accumulation window, and the sum of the weights of their trained tokens."""
        self._window = Window(self._train_rows)
        self.measures.begin_window()
        return super().get_batch_samples(*arguments)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        # In a stream, batches with and without weights mix, also across processes: all are counted in floats.
        # The Trainer counts those of processes that share a model once for each of them.
        streamed = isinstance(self.train_dataset, torch.utils.data.IterableDataset) and self._loss is not None
        if not streamed and self.engine.sharing == 1 and not any("loss_weights" in batch for batch in batch_samples):
            return super()._get_num_items_in_batch(batch_samples, device)
        total = window_weight(batch_samples, device)
        if not self.args.average_tokens_across_devices:
            return total
        return self.accelerator.gather(total).sum() / self.engine.sharing

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """A forward and backward; if memory runs out, again in micro-batches, with the gradients of the whole."""

        def forget() -> None:
            model.zero_grad()
            self.measures.repeat_window()

        backward = functools.partial(self._backward, model, num_items_in_batch)
        batch = {name: value for name, value in inputs.items() if name != ROWS}
        loss = self._window.add(self._prepare_inputs(batch), backward, forget)
        self.measures.add_loss(loss, 1 / self.current_gradient_accumulation_steps)
        if self.finite is not None:
            self.finite.add(loss, inputs.get(ROWS, []))
        return loss

    def _backward(self, model: Any, num_items_in_batch: Any, parts: list[dict[str, Any]]) -> Any:
        losses = []
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part, num_items_in_batch))
        return sum(losses[1:], losses[0])

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a micro-batch: its share of the window's, or its own mean without ``num_items_in_batch``.

        It has gradients unless they are disabled, also of a model in evaluation mode. With ``return_outputs`` the
        outputs contain the logits of every position.
        """
        if self._loss is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        compute = self._training_loss if torch.is_grad_enabled() else self._evaluation_loss
        with self._asked_for_losses():
            loss, outputs = compute(model, inputs, return_outputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _training_loss(self, model: Any, inputs: dict[str, Any], logits: bool, num_items_in_batch: Any) -> Any:
        batch = Batch.of(inputs)
        self.measures.begin_batch()
        total, result, outputs = self.loss_head.ask(
            model, batch.inputs, batch.targets, logits=logits, values=batch.values
        )
        share = 1.0
        if num_items_in_batch is None:
            loss = total / or_one(batch.targets.weight.to(total.device))
        else:
            share = batch.fraction / self.current_gradient_accumulation_steps
            loss = total / or_one(num_items_in_batch.to(total.device))
            if self.args.average_tokens_across_devices:  # gradients are averaged over processes
                loss = loss * self.engine.replicas
        measures = result.measures
        if torch.is_tensor(auxiliary := getattr(outputs, "aux_loss", None)):
            if self.loss_head.auxiliary is None:
                what = f"model type {self.model.config.model_type} returns an aux_loss with an unknown coefficient"
                raise ConfigError(Problem(what, "model", "set model.options.output_router_logits: false"))
            added = self.loss_head.auxiliary * auxiliary.to(loss.device) * share
            loss = loss + added
            self.measures.add_auxiliary(added, share)
            measures = {**measures, "router_loss": auxiliary.detach().float().expand(len(batch.targets.tokens_K))}
        trained, weights_K = len(batch.targets.tokens_K), batch.targets.weights_K  # noqa: N806 (a shape)
        weight = trained if weights_K is None else weights_K.sum()
        self.measures.add(batch.tokens, trained, total.detach(), weight, measures)
        self.measures.add_sources(result.losses_K, weights_K, batch.sources_K)
        return loss, outputs

    def evaluate(self, *arguments: Any, **options: Any) -> Any:
        """As in the Trainer; in a training, the metric by which models are compared must be there."""
        with self._asked_for_losses(), self.measures.paused():
            metrics = super().evaluate(*arguments, **options)
        if self.is_in_train and "metric_key_prefix" not in options:  # of all sets together
            require_metric(self.args, metrics)
        return metrics

    def predict(self, *arguments: Any, **options: Any) -> Any:
        """As in the Trainer."""
        with self._asked_for_losses(), self.measures.paused():
            return super().predict(*arguments, **options)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As in the Trainer, with loss and measures as means over all trained tokens."""
        sums: list[RowSums] = []
        names = self._names_of(without_numbers(dataloader.dataset))
        one = gathering_once(self.accelerator, self.engine.sharing)
        with replaced(self, "_evaluated", sums), replaced(self, "_evaluated_sources", names), one:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
            )
        for name, mean in token_means(sums).items():
            if name != "loss" or not self._own_loss:
                output.metrics[f"{metric_key_prefix}_{name}"] = mean
        if self._completing is not None:
            output.metrics.update(self._completing.measure(self, dataloader.dataset, metric_key_prefix))
        loss = output.metrics.get(f"{metric_key_prefix}_loss", 0.0)
        if not math.isfinite(loss):
            logger.warning("%s_loss is %s after step %d", metric_key_prefix, loss, self.state.global_step)
        if not output.num_samples:
            logger.warning("nothing was evaluated: train.dataloader_drop_last drops the only batch of the set")
        return output

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """As in the Trainer; the logits of every position are computed only if they are needed, as for metrics."""
        if self._own_loss or not prediction_loss_only or "labels" not in inputs:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss, None, None

    def _evaluation_loss(self, model: Any, inputs: dict[str, Any], logits: bool, num_items_in_batch: Any) -> Any:
        def compute(parts: list[dict[str, Any]]) -> RowSums:
            names = self._evaluated_sources
            return RowSums.joined([RowSums.of(self.loss_head, model, part, logits, names) for part in parts])

        sums = self._eval_rows.run(compute, inputs)
        if self._evaluated is not None:
            self._evaluated.append(RowSums(sums.names, self.accelerator.gather_for_metrics(sums.table), None))
        return sums.mean_loss, sums.outputs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds tokens per second, trained tokens and measures since the last training log, and the peak of memory.

        They are over all processes. The loss is the mean over the trained tokens since the last training log; the
        Trainer's is the mean over its steps.

        The final ``train_loss`` is the mean over the steps of this run and all processes; of the steps since the last
        log, the Trainer's own has only the share of the first process.
        """
        if "train_loss" in logs and (mean := self.measures.mean_loss(self.accelerator)) is not None:
            logs["train_loss"] = mean  # in place: the Trainer returns this dictionary
            logs.update(self.measures.totals(self.accelerator, self.state.log_history, self.engine.sharing))
        if "loss" in logs:
            if self.finite is not None:
                self.finite.correct(logs)
            if entry := self.measures.log_entry(self.accelerator, self.state.log_history, self.engine.sharing):
                own = {"loss": logs["loss"]} if self._own_loss else {}
                logs.update({**entry, **own}, memory=peak_memory(self.accelerator))
        super().log(logs, start_time)

    @property
    def _sharing(self) -> dict[str, int]:
        return {"processes": self.args.world_size, "sharing": self.engine.sharing}

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if not self.saver.elsewhere:
            self.measures.write(output_dir, self.args.process_index, self._sharing)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.measures.paused():
            super()._save_checkpoint(model, trial)
