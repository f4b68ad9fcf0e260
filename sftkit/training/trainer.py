"""`transformers.Trainer` with the loss over trained tokens, and measures that cost no further forward."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import Trainer
from transformers.trainer_pt_utils import nested_concat

from sftkit.data.stream import Stream
from sftkit.errors import Problem, RunError
from sftkit.training.batches import Batch, WithPositions, pieces, rows_of
from sftkit.training.head import LossHead
from sftkit.training.loss import HeadLoss
from sftkit.training.measures import Measures

logger = logging.getLogger("sftkit")


class TokenLossTrainer(Trainer):
    """Divides the loss by the trained tokens of the whole accumulation window, over all processes.

    The model never sees the labels, so its own reduction cannot interfere, and makes no logits but those of trained
    positions. The evaluation loss is the mean over all trained tokens of the set, not over batches. A batch that is too
    large for the device is computed in halves, with the same gradients.

    Args:
        loss: what is minimised; with None the model's own loss is, in the stock Trainer's way.
        arguments: of `transformers.Trainer`.
    """

    data_collator: Any
    processing_class: Any
    train_dataset: Any
    eval_dataset: Any

    def __init__(self, *, loss: HeadLoss | None, data_collator: Any, **arguments: Any) -> None:
        super().__init__(data_collator=data_collator, **arguments)
        if loss is not None:  # the window's trained tokens are counted, and divide it
            self.model_accepts_loss_kwargs = True
            self.loss_is_scaled_for_ga = True
            self._loss_shifts_labels = True
        self._loss = loss
        self._head: LossHead | None = None
        self._load_result: Any = None
        self._gives_logits = False
        # The model has another, or a subclass.
        self._own_loss = loss is None or type(self).compute_loss is not TokenLossTrainer.compute_loss
        self._measures = Measures()
        self._loss_sum: Any = 0.0
        self._steps = 0.0
        self._share = 1.0  # of a batch that is computed at once
        self._rows_at_once: dict[bool, int] = {}  # while training and while not, after memory ran out
        self._window: list[dict[str, Any]] = []  # batches of the window whose gradients are there already
        self._evaluated: list[Any] = []

    @property
    def loss_head(self) -> LossHead:
        """What asks the model for losses."""
        if self._head is None:
            assert self._loss is not None
            self._head = LossHead(self.model, self._loss)
        return self._head

    def _asked_for_losses(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._loss is None else self.loss_head.installed()

    def call_model_init(self, trial: Any = None) -> Any:
        """As the Trainer's; the new model has a head of its own."""
        self._head = None
        return super().call_model_init(trial)

    def _inner_training_loop(self, *arguments: Any, **options: Any) -> Any:
        with self._asked_for_losses():
            return super()._inner_training_loop(*arguments, **options)

    def predict(self, *arguments: Any, **options: Any) -> Any:
        """As the Trainer's."""
        with self._asked_for_losses(), self._measures.paused():
            return super().predict(*arguments, **options)

    def evaluate(self, *arguments: Any, **options: Any) -> Any:
        """As the Trainer's."""
        with self._asked_for_losses(), self._measures.paused():
            return super().evaluate(*arguments, **options)

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> Any:
        with self._measures.paused():
            return super()._save_checkpoint(*arguments, **options)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        self._load_result = load_result  # looked at by who knows the checkpoint

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_all(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_all(self.state.best_model_checkpoint)

    def _load_all(self, checkpoint: Any) -> None:
        """Loads what the Trainer has left out: models may be saved under other names than their weights have.

        Raises:
            RunError: if the checkpoint lacks weights.
        """
        result, self._load_result = self._load_result, None
        if result is None or not (result.unexpected_keys or untied(self.model, result.missing_keys)):
            return
        model = self.accelerator.unwrap_model(self.model)
        saved, told = type(model).from_pretrained(
            checkpoint, dtype="auto", attn_implementation="eager", use_safetensors=True, output_loading_info=True
        )
        if missing := sorted({*told["missing_keys"], *map(str, told["mismatched_keys"])}):
            what = f"the checkpoint lacks {len(missing)} weights of {type(model).__name__}, as {missing[0]}"
            raise RunError(Problem(what, str(checkpoint), "go on from another checkpoint, or train anew"))
        model.load_state_dict(saved.state_dict())

    def get_train_dataloader(self) -> Any:
        """As the Trainer's; a stream, whose processes read a share each, is not shared out again."""
        if not isinstance(self.train_dataset, Stream):
            return super().get_train_dataloader()
        loader = torch.utils.data.DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            collate_fn=self._batch_collator(self.train_dataset),
            pin_memory=self.args.dataloader_pin_memory,
        )
        return prepare_data_loader(
            loader,
            self.accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            dispatch_batches=False,
        )

    def _get_train_sampler(self, *arguments: Any, **options: Any) -> Any:
        with self._told_by_tokens():
            return super()._get_train_sampler(*arguments, **options)

    def _get_eval_sampler(self, *arguments: Any, **options: Any) -> Any:
        with self._told_by_tokens():
            return super()._get_eval_sampler(*arguments, **options)

    @contextlib.contextmanager
    def _told_by_tokens(self) -> Iterator[None]:
        """Rows have tokens, whatever a processor names first: their lengths are told by those."""
        processor = self.processing_class
        self.processing_class = getattr(processor, "tokenizer", processor)
        try:
            yield
        finally:
            self.processing_class = processor

    def _get_dataloader(self, dataset: Any, *arguments: Any, **options: Any) -> Any:
        own, self.data_collator = self.data_collator, self._batch_collator(dataset)
        try:
            return super()._get_dataloader(dataset, *arguments, **options)
        finally:
            self.data_collator = own

    def _batch_collator(self, dataset: Any) -> Any:
        """What makes the batches of a data set: the collator, and what the step wants to know of them."""
        return self.data_collator if self._own_loss else WithPositions(self.data_collator)

    def get_batch_samples(self, *arguments: Any) -> Any:
        """The batches of an accumulation window, and the sum of the weights of their trained tokens."""
        self._window.clear()
        self._measures.begin_window()
        return super().get_batch_samples(*arguments)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        # Of a stream, some batches may have weights and others none, also on other processes: all count as floats.
        streamed = isinstance(self.train_dataset, torch.utils.data.IterableDataset) and self._loss is not None
        if not streamed and not any("loss_weights" in batch for batch in batch_samples):
            return super()._get_num_items_in_batch(batch_samples, device)
        total = torch.zeros((), device=device)
        for batch in batch_samples:
            targets = Batch.of(batch).targets
            weights_K = targets.weights_K  # noqa: N806 (suffixes are shapes)
            total = total + (len(targets.tokens_K) if weights_K is None else weights_K.sum().to(device))
        return self.accelerator.gather(total).sum() if self.args.average_tokens_across_devices else total

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """A forward and backward; where memory runs out, once more in halves, with the gradients of the whole."""
        inputs = self._prepare_inputs(inputs)
        loss = self._add_gradients(model, inputs, num_items_in_batch)
        self._loss_sum = self._loss_sum + loss
        self._steps += 1 / self.current_gradient_accumulation_steps
        return loss

    def _add_gradients(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> Any:
        while True:
            try:
                loss = self._in_pieces(model, inputs, num_items_in_batch)
                self._window.append(inputs)
                return loss
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                self._halve(inputs, error)
            # The gradients of the window are begun anew: the failed backward may have left a part of its own.
            clear_memory()
            model.zero_grad()
            self._measures.repeat_window()
            again, self._window = self._window, []
            for earlier in again:
                self._add_gradients(model, earlier, num_items_in_batch)

    def _in_pieces(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> Any:
        parts = list(pieces(inputs, self._rows_at_once.get(True, rows_of(inputs))))
        self._share = 1 / len(parts)
        losses = []
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part, num_items_in_batch))
        return sum(losses[1:], losses[0])

    def _halve(self, inputs: dict[str, Any], error: Exception, training: bool = True) -> None:
        """Let fewer rows be computed at once.

        Raises:
            RunError: if there is just one, or other processes cannot follow.
        """
        rows = min(rows_of(inputs), self._rows_at_once.get(training, rows_of(inputs)))
        key = "train.per_device_train_batch_size" if training else "train.per_device_eval_batch_size"
        columns = inputs["input_ids"].shape[1]
        if self._own_loss:
            what = f"out of memory with {rows} rows of {columns} tokens, and a compute_loss of one's own is not halved"
            raise RunError(Problem(what, key, "lower it, and raise train.gradient_accumulation_steps")) from error
        if self.args.world_size > 1 or self.is_deepspeed_enabled:
            what = f"out of memory with {rows} rows of {columns} tokens on process {self.args.process_index}"
            raise RunError(
                Problem(what, key, "lower it, and raise train.gradient_accumulation_steps by as much")
            ) from error
        if rows == 1:
            fix = "lower data.max_length, or see docs/memory.md for what takes less memory"
            raise RunError(Problem(f"out of memory with a single row of {columns} tokens", key, fix)) from error
        self._rows_at_once[training] = -(-rows // 2)
        told = "same gradients" if training else "same loss"
        logger.warning(
            "out of memory with %d rows of %d tokens: computing %d at once from here on, with the %s (%s)",
            *(rows, columns, self._rows_at_once[training], told, key),
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one micro-batch: its share of the window's, or without ``num_items_in_batch`` its own mean.

        Whoever asks for outputs gets the logits of every position in them.
        """
        if self._loss is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not model.training:
            loss, outputs = self._evaluate_batch(
                model, inputs, self._gives_logits or (return_outputs and self._own_loss)
            )
            return (loss, outputs) if return_outputs else loss
        batch = Batch.of(inputs)
        self._measures.begin_batch()
        total, told, outputs = self.loss_head.ask(model, batch.inputs, batch.targets, logits=return_outputs)
        share = 1.0
        if num_items_in_batch is None:
            loss = total / or_one(batch.targets.weight.to(total.device))
        else:
            share = self._share / self.current_gradient_accumulation_steps
            loss = total / or_one(num_items_in_batch.to(total.device))
            if self.args.average_tokens_across_devices:  # gradients are averaged over processes
                loss = loss * self.accelerator.num_processes
        if getattr(outputs, "aux_loss", None) is not None:
            coefficient = getattr(self.model.config.get_text_config(), "router_aux_loss_coef", 0.0)
            loss = loss + coefficient * outputs.aux_loss.to(loss.device) * share
        self._measures.add(batch.tokens, len(batch.targets.tokens_K), told.measures)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """As the Trainer's; logits of every position are made only if somebody wants them, as ``compute_metrics``."""
        self._gives_logits = not prediction_loss_only
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def _evaluate_batch(self, model: Any, inputs: dict[str, Any], logits: bool) -> tuple[Any, Any]:
        """Sums of each row: only by rows can the ones that fill up the last batch of a process be left out."""
        while True:
            try:
                parts = list(pieces(inputs, self._rows_at_once.get(False, rows_of(inputs))))
                sums, outputs = zip(*(self._sums_by_row(model, part, logits) for part in parts), strict=True)
                break
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                self._halve(inputs, error, training=False)
            clear_memory()
        names = sums[0]
        table = torch.stack([torch.cat([part[name] for part in sums]) for name in names], dim=1)
        self._evaluated.append((list(names), self.accelerator.gather_for_metrics(table)))
        loss = table[:, 0].sum() / or_one(table[:, 1].sum())
        return loss, functools.reduce(nested_concat, outputs) if logits else {}

    def _sums_by_row(self, model: Any, inputs: dict[str, Any], logits: bool) -> tuple[dict[str, Any], Any]:
        batch = Batch.of(inputs)
        with torch.no_grad():
            _, told, outputs = self.loss_head.ask(model, batch.inputs, batch.targets, logits=logits)
        ones = torch.ones_like(told.losses_K)
        weights = ones if batch.targets.weights_K is None else batch.targets.weights_K.to(ones.device)
        columns = {"loss": told.losses_K, "weights": weights, "tokens": ones, **told.measures}
        return {name: batch.by_row(values) for name, values in columns.items()}, outputs

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As the Trainer's, with loss and measures as means over all trained tokens."""
        self._evaluated.clear()
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
        )
        if not self._evaluated:
            if not output.num_samples:
                logger.warning("nothing was evaluated: train.dataloader_drop_last drops the set's only batch")
            return output
        names = self._evaluated[0][0]
        totals = torch.cat([table for _, table in self._evaluated]).double().sum(0).tolist()
        told = dict(zip(names, totals, strict=True))
        loss, weights, tokens = (told.pop(name) for name in ("loss", "weights", "tokens"))
        if not self._own_loss:
            output.metrics[f"{metric_key_prefix}_loss"] = loss / (weights or 1.0)
        for name, value in told.items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value / max(tokens, 1.0)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds tokens a second, trained tokens and measures since the last training log, over all processes.

        The final ``train_loss`` is the mean over this run's steps and all processes; the Trainer's own has only the
        first process's share of what was not yet logged.
        """
        if "train_loss" in logs and self._steps:
            mean = self.accelerator.reduce(self._loss_sum, reduction="mean").item() / self._steps
            logs["train_loss"] = mean  # in place, as the Trainer adds to what it then returns
        if "loss" in logs:
            told = (entry["trained_tokens"] for entry in reversed(self.state.log_history) if "trained_tokens" in entry)
            logs.update(self._measures.told(self.accelerator, trained_before=next(told, 0)))
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        # The pickled arguments are needed by nothing: the manifest holds them as text.
        if self.args.should_save:
            Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)


def untied(model: Any, names: list[str]) -> list[str]:
    """Those of the names whose weight is not another name's too."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    others = {id(weight) for name, weight in weights.items() if name not in names}
    return [name for name in names if id(weights.get(name)) not in others]


def or_one(divisor: Any) -> Any:
    """A divisor, or 1 where it is 0: then nothing is trained, and what it divides is 0."""
    return torch.where(divisor > 0, divisor, torch.ones_like(divisor))


def clear_memory() -> None:
    """Give back what a failed forward or backward held."""
    gc.collect()
    clear_device_cache()
