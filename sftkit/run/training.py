"""The training stage of a run: its trainer, the loop, and what is saved."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.config.train_fields import evaluates_only
from sftkit.errors import ConfigError, Problem, RunError
from sftkit.plugin.calls import NamedContext
from sftkit.run.guards.training import try_loss
from sftkit.run.inputs import chosen_metrics, stops_early
from sftkit.run.manifest import DONE
from sftkit.run.result import Best
from sftkit.run.saving import prepare_saving
from sftkit.run.stages import reduced_activations
from sftkit.run.written import LOG

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from sftkit.console import Display
    from sftkit.data.prepare import PreparedData
    from sftkit.run.directory import EarlierRun, RunRecord
    from sftkit.run.interruption import Interruption
    from sftkit.run.processes import Processes
    from sftkit.run.stages import PreparedRun, Stages
    from sftkit.training.collate import BatchChoice
    from sftkit.training.engine import Engine
    from sftkit.training.loaders import RowSources
    from sftkit.training.trackers import Trackers

logger = logging.getLogger("sftkit")

#: How the entries of an evaluation end that are about its speed.
NO_METRICS = ("_runtime", "_per_second", "_preparation_time", "flos")


def make_trainer(
    stages: Stages,
    prepared: PreparedRun,
    model: Any,
    display: Display,
    directory: Path,
    interruption: Interruption,
    trackers: Trackers,
    arguments: TrainingArguments,
    engine: Engine,
    processes: Processes,
) -> Any:
    """The trainer of a run.

    Args:
        stages: the run's stages.
        prepared: its data, tokenizer and collator.
        model: the model to train.
        display: where progress is shown.
        directory: where ``log.jsonl`` is written.
        interruption: what may end the training early.
        trackers: those of ``train.report_to``, which have begun.
        arguments: from `training_arguments`, made before the model was loaded.
        engine: how the processes share the model.
        processes: those of the run.
    """
    from transformers import PrinterCallback, set_seed

    from sftkit.run.marks import Marks
    from sftkit.training.best import BestModel
    from sftkit.training.completion_metrics import CompletionMetrics
    from sftkit.training.finite import FiniteSteps
    from sftkit.training.groups import OptimizerMaker
    from sftkit.training.progress import ProgressCallback
    from sftkit.training.stopping import StopCallback
    from sftkit.training.trainer import TokenLossTrainer

    config, data = prepared.config, prepared.data
    metrics = stages.inputs.compute_metrics
    _settle(arguments, model, prepared)
    set_seed(arguments.seed)
    sets = list(data.eval.values())
    loss, callbacks = stages.make_loss(model), [*stages.callbacks(), *stages.inputs.callbacks]
    _check_stopping(callbacks, arguments)
    functions = chosen_metrics(config, prepared.plugins)
    progress, chosen = ProgressCallback(display, directory / LOG), config.evaluate
    with _hub_errors():
        trainer = TokenLossTrainer(
            loss=loss,
            engine=engine,
            make_optimizer=OptimizerMaker(prepared.plugins, config, engine),
            completing=CompletionMetrics(functions, config.evaluate) if functions else None,
            model=model,
            args=arguments,
            data_collator=prepared.collator,
            sources=_sources(data),
            finite=FiniteSteps(config.run.on_nan, config.run.max_skipped),
            stopping=StopCallback(interruption),
            best=BestModel(progress.note, chosen.patience, chosen.min_delta, last=chosen.best is not None),
            train_dataset=None if evaluates_only(config) else data.train,
            eval_dataset=sets[0] if len(sets) == 1 else dict(data.eval) or None,
            processing_class=prepared.vocabulary.processor or prepared.tokenizer,
            compute_metrics=metrics,
            callbacks=[Marks(processes), progress, *trackers.callbacks, *callbacks],
        )
    try_loss(loss, model, arguments.device, prepared.plugins)
    if sets:  # so that callbacks see it from the start, and not only after the first evaluation
        trainer.callback_handler.eval_dataloader = trainer.get_eval_dataloader(sets[0])
    trainer.remove_callback(PrinterCallback)
    trainer.saver.meet = processes.meet
    if not evaluates_only(config):
        prepare_saving(trainer, config, prepared.plugins)
    return trainer


def _settle(arguments: TrainingArguments, model: Any, prepared: PreparedRun) -> None:
    """Set the arguments that depend on the model. Changes them."""
    arguments.report_to = []  # the trackers are among the callbacks
    if "use_cache" not in prepared.config.train:  # the Trainer writes it into the model's configuration, which is saved
        arguments.use_cache = getattr(model.config, "use_cache", False)
    if prepared.vocabulary.processor is not None and arguments.ddp_find_unused_parameters is None:
        # A process whose batch has no image leaves the vision tower without gradients, and others would wait for them.
        arguments.ddp_find_unused_parameters = True


def _sources(data: PreparedData) -> list[RowSources]:
    """Of the data sets with several sources, where their tokens come from."""
    from sftkit.data.columns import SOURCES
    from sftkit.training.loaders import RowSources

    found = [
        RowSources(data.splits[split], list(data.described[split][SOURCES]), column)
        for split, column in data.sources.items()
    ]
    names = getattr(data.splits["train"], "source_names", [])
    return [*found, RowSources(data.train, names)] if names else found


def _check_stopping(callbacks: list[Any], arguments: Any) -> None:
    """Also for callbacks of plugins, which are not known before.

    Raises:
        ConfigError: if an `EarlyStoppingCallback` has no metric.
    """
    named = arguments.metric_for_best_model is not None and arguments.eval_strategy != "no"
    if not named and any(map(stops_early, callbacks)):
        fix = "set train.metric_for_best_model and train.eval_strategy"
        raise ConfigError(Problem("the EarlyStoppingCallback needs a metric", "train.metric_for_best_model", fix))


@contextmanager
def _hub_errors() -> Iterator[None]:
    """Raises:
    RunError: if the hub refuses the repository of ``train.push_to_hub``.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        what = f"the hub refuses: {' '.join(str(error).split())}"
        raise RunError(Problem(what, "train.hub_model_id", "check the name, and the rights of the token")) from error


def train_or_evaluate(
    trainer: Any, stages: Stages, prepared: PreparedRun, record: RunRecord, earlier: EarlierRun | None
) -> dict[str, float]:
    """Train and export, or only evaluate, and record the end; returns the metrics. Arguments as of `train`."""
    from sftkit.training.measures import trained_by_source

    record.steps = lambda: int(trainer.state.global_step)
    if evaluates_only(stages.config):
        metrics = evaluate(trainer, stages, prepared, record)
    else:
        known = str(earlier.checkpoint) if earlier and earlier.checkpoint else ""
        checkpoint = record.processes.from_main("the checkpoint", known) or None
        metrics = train(trainer, stages, prepared, record, checkpoint)
        export(trainer, prepared, record)
    best = Best.of(trainer)
    ended: dict[str, Any] = {"data": prepared.data.summary(), "columns": prepared.data.columns, "metrics": metrics}
    ended |= {"best": asdict(best) if best else None, "stopped": trainer.best.stopped}
    ended |= {"tokenizing": prepared.data.tokenized, "trained": trained_by_source(trainer.state.log_history)}
    record.end(DONE, **ended, skipped_steps=trainer.finite.skipped, saving=trainer.saver.totals)
    return metrics


def train(
    trainer: Any, stages: Stages, prepared: PreparedRun, record: RunRecord, checkpoint: str | None
) -> dict[str, float]:
    """Train, and evaluate within the same contexts, since batches are made for the model as it is in them.

    The model is saved as soon as it is trained, before anything else is done that can fail.

    Args:
        trainer: from `make_trainer`.
        stages: the run's stages.
        prepared: its data.
        record: the run's manifest.
        checkpoint: the checkpoint to continue from, if there is one.

    Returns:
        The metrics of the model that is saved, and those before the first step as ``NAME_before``.

    Raises:
        RunError: if nothing computes ``train.metric_for_best_model``.
        TrainingError: if a loss, a gradient or a weight is not finite.
        Interrupted: if a signal or the deadline ended it.
    """
    from sftkit.run.final_save import SavesFirst
    from sftkit.training.best import saved_step
    from sftkit.training.resumed import configured_hyperparameters

    saving = SavesFirst(trainer, record)
    trainer.callback_handler.callbacks.insert(0, saving)
    with ExitStack() as stack:
        stack.enter_context(trainer.stopping.interrupting())
        stack.enter_context(saving.even_after_errors())
        stack.enter_context(configured_hyperparameters(trainer))
        stack.enter_context(reduced_activations(trainer.model, prepared))
        stack.enter_context(trainer.loss_head.installed())
        _enter_contexts(trainer, stages, prepared, record, stack)
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except KeyError as error:
            if "metric_for_best_model" not in str(error):
                raise
            what, fix = str(error.args[0]), "use one of these metrics"
            raise RunError(Problem(what, "train.metric_for_best_model", fix)) from error
        if not trainer.stopping.stopped and not _evaluated(trainer, list(prepared.data.eval)):
            trainer.evaluate()
    return _final_metrics(trainer.state.log_history, saved_step(trainer.args, trainer.state))


def _enter_contexts(trainer: Any, stages: Stages, prepared: PreparedRun, record: RunRecord, stack: ExitStack) -> None:
    """Enter what plugins hold around a training; batches are made as they decide, until the stack is left."""
    with trainer.engine.callable(trainer.model):
        choices = stack.enter_context(stages.training(trainer.model, prepared.data.train, prepared.collator))
        collator = _make_batches(trainer, choices, record, stack) or prepared.collator
        stack.enter_context(loss_context(trainer, prepared, collator))


def _make_batches(trainer: Any, choices: Mapping[str, BatchChoice], record: RunRecord, stack: ExitStack) -> Any:
    """Make the batches as plugins decided, until the stack is left; log and record why.

    Returns:
        The collator that a plugin chose; None if the run's own is used.
    """
    from sftkit.training.collate import CheckedCollator

    made = None
    for plugin, choice in choices.items():
        logger.info("%s: %s", plugin, choice.reason)
        if choice.collator is not None:
            made = CheckedCollator(choice.collator, plugin, f"plugin {plugin}, hook training_context")
            stack.enter_context(trainer.collating(made))
    record.update(batches={plugin: choice.reason for plugin, choice in choices.items()})
    return made


def evaluate(trainer: Any, stages: Stages, prepared: PreparedRun, record: RunRecord) -> dict[str, float]:
    """Evaluate, with everything that happens when a training begins and ends; arguments as of `train`."""
    with ExitStack() as stack:
        stack.enter_context(trainer.stopping.interrupting())
        stack.enter_context(trainer.loss_head.installed())
        _enter_contexts(trainer, stages, prepared, record, stack)
        call = trainer.callback_handler
        trainer.control = call.on_train_begin(trainer.args, trainer.state, trainer.control)
        trainer.evaluate()
        trainer.control = call.on_train_end(trainer.args, trainer.state, trainer.control)
    return _final_metrics(trainer.state.log_history, 0)


def loss_context(trainer: Any, prepared: PreparedRun, collator: Any) -> AbstractContextManager[Any]:
    """What the loss holds around the training, with batches of this collator; errors name the loss's plugin."""
    held = trainer.loss_held(prepared.data.splits.get("train"), collator)
    return NamedContext(prepared.plugins.first_filler("make_loss"), "make_loss", held)


def export(trainer: Any, prepared: PreparedRun, record: RunRecord) -> None:
    """Let plugins export the model, which is saved already."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    with record.writing():
        prepared.plugins.hook.export_model(model=model, tokenizer=prepared.tokenizer, directory=record.directory)


def _evaluated(trainer: Any, sets: list[str]) -> bool:
    """Whether the model that is saved was evaluated on each set during training."""
    names = ["eval_loss"] if len(sets) == 1 else [f"eval_{name}_loss" for name in sets]
    from sftkit.training.best import saved_step

    step, history = saved_step(trainer.args, trainer.state), trainer.state.log_history
    return all(any(entry["step"] == step and name in entry for entry in history) for name in names)


def _final_metrics(log_history: list[dict[str, Any]], saved_step: int) -> dict[str, float]:
    metrics: dict[str, float] = {}
    # evaluations of the model that is saved come last; a resumed run may log steps again
    for entry in sorted(log_history, key=lambda entry: entry["step"] == saved_step):
        for name, value in entry.items():
            if not name.startswith(("eval_", "train_")) or name.endswith(NO_METRICS):
                continue
            before = entry["step"] == 0 < saved_step and name.startswith("eval_")
            metrics[f"{name}_before" if before else name] = value
    return metrics
