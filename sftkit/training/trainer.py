"""`transformers.Trainer` with the loss over trained tokens, and a rate in tokens."""

from __future__ import annotations

import time
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from transformers import Trainer

from sftkit.training.loss import row_losses, trained_token_loss


class SFTTrainer(Trainer):
    """Divides the loss by the trained tokens of the whole accumulation window, over all processes.

    The model never sees the labels, so its own reduction cannot interfere. The evaluation loss is the mean over all
    trained tokens of the set, not over batches.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(compute_loss_func=_loss, **arguments)
        # The loss function is given the window's count; the forward has no use for it.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = True
        self._loss_shifts_labels = True
        self._tokens: Any = None
        self._loss_sum: Any = 0.0
        self._steps = 0.0
        self._since = time.perf_counter()
        self._evaluated: list[tuple[Any, Any]] = []

    def get_train_dataloader(self) -> Any:
        """As the Trainer's; a stream, whose processes read a share each, is not shared out again."""
        if not isinstance(self.train_dataset, torch.utils.data.IterableDataset):
            return super().get_train_dataloader()
        loader = torch.utils.data.DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            collate_fn=self.data_collator,
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

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one micro-batch; the cache is off, or packed documents would see each other."""
        if not model.training:
            loss, outputs = self._evaluate_batch(model, dict(inputs))
            return (loss, outputs) if return_outputs else loss
        labels, mask = inputs["labels"], inputs.get("attention_mask")
        if self._tokens is None:  # the clock starts with a window's first batch: evaluations are not in the rate
            self._tokens, self._since = 0, time.perf_counter()
        loss, outputs = super().compute_loss(
            model, {**inputs, "use_cache": False}, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        self._tokens = self._tokens + (labels.numel() if mask is None else mask.sum())
        if getattr(outputs, "aux_loss", None) is not None:
            coefficient = getattr(self.model.config.get_text_config(), "router_aux_loss_coef", 0.0)
            loss = loss + coefficient * outputs.aux_loss / self.current_gradient_accumulation_steps
        self._loss_sum = self._loss_sum + loss.detach()
        self._steps += 1 / self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def _evaluate_batch(self, model: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
        """Sums of each row: only by rows can the ones that fill up the last batch of a process be left out."""
        labels = inputs.pop("labels")
        outputs = model(**inputs, use_cache=False)
        sums_B, counts_B = row_losses(_logits(outputs, labels), labels)  # noqa: N806 (suffixes are shapes)
        self._evaluated.append(self.accelerator.gather_for_metrics((sums_B, counts_B)))
        return sums_B.sum() / counts_B.sum().clamp(min=1), outputs

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **options: Any) -> Any:
        """As the Trainer's, with the loss as the mean over all trained tokens."""
        self._evaluated.clear()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **options)
        total, count = (torch.cat(column).double().sum().item() for column in zip(*self._evaluated, strict=True))
        output.metrics[f"{metric_key_prefix}_loss"] = total / max(count, 1.0)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the tokens a second since the last training log, padding not counted.

        The final ``train_loss`` is the mean over this run's steps and all processes; the Trainer's own has only the
        first process's share of what was not yet logged.
        """
        if "train_loss" in logs and self._steps:
            mean = self.accelerator.reduce(self._loss_sum, reduction="mean").item() / self._steps
            logs = {**logs, "train_loss": mean}
        if "loss" in logs and self._tokens is not None:
            rate = int(self._tokens) * self.args.world_size / max(time.perf_counter() - self._since, 1e-9)
            logs = {**logs, "tokens_per_second": round(rate, 1)}
            self._tokens = None
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        # The pickled arguments are needed by nothing: the manifest holds them as text.
        if self.args.should_save:
            from pathlib import Path

            Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)


def _loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    return trained_token_loss(_logits(outputs, labels), labels, num_items_in_batch)


def _logits(outputs: Any, labels: Any) -> Any:
    """The logits at the labels' positions: prompt methods put virtual tokens in front of the row."""
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    return logits[:, -labels.shape[1] :]
