"""`transformers.Trainer` that shares the rows among processes, and continues at the row where it has stopped."""

from __future__ import annotations

import functools
import math
from typing import Any

from transformers import trainer
from transformers.trainer_utils import has_length

from sftkit.errors import ConfigError, Problem
from sftkit.training.attributes import replaced
from sftkit.training.engine import Engine
from sftkit.training.guarded import GuardedTrainer
from sftkit.training.loaders import after_first_batches, row_order, shared_among_replicas, without_numbers
from sftkit.training.randomness import keeps_random_state, rounds_at_random, seed_replica
from sftkit.training.sampler import Position, ReplicaBatches


class SharedTrainer(GuardedTrainer):
    """Orders the rows, shares them among the replicas of the engine, and lets each draw its own random numbers.

    A resumed training continues at a row: also if a step has more or fewer rows than before, or other processes share
    them, each row of the epoch is trained once.
    """

    engine: Engine
    train_dataset: Any
    _resumed: Position | None = None  # until its epoch begins
    _before = 0  # batches of this epoch that were trained before
    _skipped = 0  # those of them that belong to the first step

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = without_numbers(self.train_dataset if train_dataset is None else train_dataset)
        step = self._train_batch_size * self.args.gradient_accumulation_steps * self.engine.replicas
        return row_order(self.args, rows, step, training=True) if has_length(rows) else None

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        rows, step = without_numbers(eval_dataset), self.args.eval_batch_size * self.engine.replicas
        return row_order(self.args, rows, step, training=False) if has_length(rows) else None

    def _get_dataloader(self, dataset: Any, *arguments: Any, is_training: bool = False, **options: Any) -> Any:
        rows, prepare = without_numbers(dataset) if is_training else None, self.accelerator.prepare
        share = functools.partial(shared_among_replicas, trainer=self, rows=rows, prepare=prepare)
        with replaced(self.accelerator, "prepare", share):
            return super()._get_dataloader(dataset, *arguments, is_training=is_training, **options)

    def position(self) -> Position | None:
        """How far the rows are trained; None for a stream, or another loader."""
        batches = getattr(self.callback_handler.train_dataloader, "batch_sampler", None)
        if not isinstance(batches, ReplicaBatches):
            return None
        epoch = int(self.state.epoch)
        return Position(self.state.global_step, epoch, batches.rows(round((self.state.epoch - epoch) * len(batches))))

    def _inner_training_loop(self, *arguments: Any, **options: Any) -> Any:
        checkpoint = options.get("resume_from_checkpoint")
        self._resumed = Position.read(checkpoint) if checkpoint and not self.args.ignore_data_skip else None
        with replaced(trainer, "skip_first_batches", after_first_batches):  # which the Trainer calls to resume
            return super()._inner_training_loop(*arguments, **options)

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """As in the Trainer; if steps had another number of rows before, the rest of the run has as many rows still."""
        values = super().set_initial_training_values(args, dataloader)
        batches, position = getattr(dataloader, "batch_sampler", None), self._resumed
        if position is None or not isinstance(batches, ReplicaBatches):
            self._resumed = None
            return values
        if batches.before(position.rows) >= len(batches):
            position = Position(position.step, position.epoch + 1, 0)
        self._resumed, self._before = position, batches.before(position.rows)
        epochs, steps_of_epoch, *counts, max_steps = values
        ahead = self._before // args.gradient_accumulation_steps
        changed = position.step - (position.epoch * steps_of_epoch + ahead)
        if changed and args.max_steps > 0:
            epochs = position.epoch + math.ceil((ahead + max_steps - position.step) / steps_of_epoch)
        elif changed:
            max_steps += changed
        return (epochs, steps_of_epoch, *counts, max_steps)

    def _init_training_state(self, *arguments: Any, **options: Any) -> tuple[int, int]:
        epochs, batches = super()._init_training_state(*arguments, **options)
        return (epochs, batches) if self._resumed is None else (self._resumed.epoch, self._before)

    def _prepare_for_training(self, *arguments: Any, **options: Any) -> Any:
        if self.args.world_size > 1 and not self.engine.sharded and rounds_at_random(self.args.optim_args):
            what = "each process would round its copy of the weights in its own way"
            fix = "remove bf16_stochastic_round, or shard the model"
            raise ConfigError(Problem(what, "train.optim_args", fix))
        prepared = super()._prepare_for_training(*arguments, **options)
        if self.args.world_size > 1:  # all weights are drawn
            seed_replica(self.args.seed, self.engine.replica, self.state.global_step)
        return prepared

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or keeps_random_state(checkpoint, self.args.world_size):
            super()._load_rng_state(checkpoint)
        else:
            seed_replica(self.args.seed, self.engine.replica, self.state.global_step)

    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        position, self._resumed = self._resumed, None
        if position is not None:
            options["train_dataloader"].batch_sampler.seek(position.rows)
            self._skipped = self._before % self.args.gradient_accumulation_steps
        super()._run_epoch(*arguments, **options)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, *arguments: Any) -> Any:
        """As in the Trainer; a first step of which some rows were trained before has the others."""
        skipped, self._skipped = self._skipped, 0
        return super().get_batch_samples(epoch_iterator, num_batches - skipped, *arguments)
