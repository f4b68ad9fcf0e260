"""`transformers.Trainer` whose checkpoints are complete or absent, and continue exactly."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from sftkit.checkpoints.files import write_text
from sftkit.checkpoints.publish import PARTIAL
from sftkit.data.stream import Stream
from sftkit.models.adapters import BASE_CONFIG
from sftkit.models.inspect import has_adapter
from sftkit.training.attributes import replaced
from sftkit.training.checkpoint import loading_all_weights, refusing_pickles
from sftkit.training.engine import Engine
from sftkit.training.evaluation import gathering_once
from sftkit.training.loaders import read_position, write_position
from sftkit.training.saving import Saver, save_beside
from sftkit.training.sharding import require_sharded
from sftkit.training.shared_trainer import SharedTrainer

SCHEDULE = "scheduler.pt"  # as the Trainer names it


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Context in which transformers shows no progress bars, such as one for each file of a model."""
    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


class SavingTrainer(SharedTrainer):
    """Saves through a `Saver`, keeps the position in a stream, and loads no pickled objects.

    Args:
        engine: how the processes share the model; DDP by default.
        arguments: of `SharedTrainer`.

    Attributes:
        saver: writes the checkpoints.
        engine: how the processes share the model.
        base_options: what is written beside an adapter: how the configuration of its base was changed.
    """

    def __init__(self, *, engine: Engine | None = None, **arguments: Any) -> None:
        self.engine = engine or Engine()
        super().__init__(**arguments)
        self.saver = Saver(self)
        self.base_options: dict[str, Any] = {}

    @property
    def sharded(self) -> bool:
        """Whether a process holds only a part of the weights, so that all take part in a save."""
        return bool(self.engine.sharded or self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def get_tp_size(self) -> int:
        """How many processes work on the same rows: the Trainer divides numbers of processes and of tokens by it."""
        return self.engine.sharing

    def floating_point_ops(self, inputs: Any) -> float:
        """As in the Trainer; processes that share a model divide its operations among them."""
        return super().floating_point_ops(inputs) / self.engine.sharing

    def _track_num_input_tokens(self, inputs: Any) -> None:
        with gathering_once(self.accelerator, self.engine.sharing):
            super()._track_num_input_tokens(inputs)

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        if self.engine.wraps:  # else it is there already
            super()._move_model_to_device(model, device)

    def _prepare_for_training(self, max_steps: int, loader: Any, checkpoint: str | None) -> Any:
        if not self.engine.wraps:
            prepare = functools.partial(self.accelerator.prepare_model, device_placement=False, evaluation_mode=True)
            with replaced(self.accelerator, "prepare_model", lambda model, **_: prepare(model)):
                return super()._prepare_for_training(max_steps, loader, checkpoint)
        if self.engine.restores:
            prepared = super()._prepare_for_training(max_steps, loader, None)
            self._load_optimizer_and_scheduler(checkpoint)
            return prepared
        prepared = super()._prepare_for_training(max_steps, loader, checkpoint)
        require_sharded(self)
        return prepared

    def _inner_training_loop(self, *arguments: Any, **options: Any) -> Any:
        self.saver.begin()
        try:
            return super()._inner_training_loop(*arguments, **options)
        finally:
            self.saver.abandon()

    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        if self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            super()._run_epoch(*arguments, **options)
        else:  # it was killed after its last step, or when it stopped, and the Trainer would train another one
            self.control.should_training_stop = True

    def _finalize_training(self, *arguments: Any, **options: Any) -> Any:
        self.saver.end()
        return super()._finalize_training(*arguments, **options)

    def get_batch_samples(self, *arguments: Any) -> Any:
        """As in the Trainer; raises what a save in the background has raised."""
        self.saver.check()
        return super().get_batch_samples(*arguments)

    @property
    def last_save_seconds(self) -> float | None:
        """How long the last checkpoint took to save, up to its end; None before the first."""
        return self.saver.last_seconds

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.saver.save(functools.partial(super()._save_checkpoint, model, trial), trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in the Trainer; files that are replaced have either their old or their new contents.

        Raises:
            TrainingError: if nothing was written, or the disk is full.
        """
        self.use_averaged_weights()
        directory = Path(output_dir or self.args.output_dir)
        of_checkpoint = PARTIAL in directory.parts
        if of_checkpoint and self.engine.restores and not (self.args.save_only_model or has_adapter(self.model)):
            directory.mkdir(parents=True, exist_ok=True)  # the Trainer looks for it when this is the best model
            return  # the engine writes the weights with the state of the optimizer
        weights = self.engine.weights(self)
        if weights is None:
            write = functools.partial(super().save_model, _internal_call=True)
        else:
            write = functools.partial(self._save, state_dict=weights)
        if of_checkpoint:
            write(str(directory))
            return
        save_beside(write, directory, self.sharded, self)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_rng_state(self, output_dir: str) -> None:
        if self.saver.elsewhere:
            return
        super()._save_rng_state(output_dir)
        if isinstance(self.train_dataset, Stream):
            batches = self.state.global_step * self.args.gradient_accumulation_steps
            position = self.train_dataset.position(batches * self._train_batch_size)
            write_position(output_dir, self.args.process_index, position)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.engine.save_state(self, output_dir):
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.engine.restores:
            return  # with the state of the optimizer
        with loading_all_weights(self, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        with refusing_pickles(checkpoint):
            if self.engine.load_state(self, checkpoint):
                self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULE), weights_only=True))
            else:
                super()._load_optimizer_and_scheduler(checkpoint)
        if isinstance(self.train_dataset, Stream) and not self.args.ignore_data_skip:
            self.train_dataset.seek(read_position(checkpoint, self.args.process_index))

    def _load_scaler(self, checkpoint: str | None) -> None:
        with refusing_pickles(checkpoint):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with refusing_pickles(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_best_model(self) -> None:
        self.use_averaged_weights()  # or the optimizer would later take the loaded ones for those that it trains
        if self.engine.restores:
            self.engine.load_state(self, self.state.best_model_checkpoint)
            return
        with loading_all_weights(self, self.state.best_model_checkpoint):
            super()._load_best_model()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with without_progress_bars():
            super()._save(output_dir, state_dict)
        directory = Path(output_dir or self.args.output_dir)
        if self.args.should_save:  # nothing needs the pickled arguments: the manifest has them as text
            (directory / "training_args.bin").unlink(missing_ok=True)
            if self.base_options:
                write_text(directory / BASE_CONFIG, json.dumps(self.base_options, indent=2) + "\n")
