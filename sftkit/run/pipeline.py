"""The flow of a run, from a configuration to a saved model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.config.source import ConfigSource
from sftkit.console import Display, show_data
from sftkit.errors import ConfigError, Problem, SftkitError
from sftkit.plugin.resolve import resolve
from sftkit.plugin.select import Choice, choices_from
from sftkit.plugin.selected import PluginSet
from sftkit.run.directory import RunDirectory, default_directory, new_manifest
from sftkit.run.distributed import is_main_process
from sftkit.run.inputs import RunInputs, as_source, check_loaded_model, is_map, split_inputs
from sftkit.run.stages import PreparedRun, Stages, reduced_activations

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.plugin.base import Plugin

logger = logging.getLogger("sftkit")


@dataclass(frozen=True)
class RunResult:
    """What a run made.

    Attributes:
        metrics: final values by name; ``NAME_before`` is the value before training.
        directory: where the model, tokenizer, manifest and logs are.
        model: the trained model, with its adapter if there is one.
        tokenizer: its tokenizer, with its chat template.
        processor: what makes its inputs, where that is more than a tokenizer.
    """

    metrics: dict[str, float]
    directory: Path
    model: Any
    tokenizer: Any
    processor: Any = None


class Pipeline:
    """A fine-tuning run.

    Args:
        model: directory or hub name, the mapping of the section ``model``, or a loaded PreTrainedModel or PeftModel;
            a loaded model is copied before it is trained.
        data: file, glob, directory or hub name, the mapping of the section ``data``, or a loaded Dataset,
            DatasetDict or list of rows.
        eval: held-out data, as ``data``; or a fraction of it, or a dict of several sets.
        plugins: names (``"neftune:alpha=10"``, ``"no:pad"``), plugin objects, or one-key mappings of name to options.
        train: fields of `transformers.TrainingArguments`.
        config: path of a YAML file, or a mapping of all sections; the other arguments go on top of it.
        tokenizer: name, or a loaded tokenizer; or a loaded processor, which is saved with the model.
        collator: used instead of the collator plugin.
        callbacks: further `transformers.TrainerCallback` objects.
        resume: go on from the newest checkpoint in ``train.output_dir``.
        overwrite: replace a run that is there.

    Example:
        >>> result = Pipeline(model="demo-dir", data="train.jsonl", plugins=["packing"]).run()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any = None,
        data: Any = None,
        *,
        eval: Any = None,
        plugins: Iterable[str | Plugin | Mapping[str, Any]] = (),
        train: Mapping[str, Any] | None = None,
        config: str | Path | Mapping[str, Any] | ConfigSource | None = None,
        tokenizer: Any = None,
        collator: Callable[[list[dict[str, Any]]], Any] | None = None,
        callbacks: Iterable[Any] = (),
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self._resume, self._overwrite = resume, overwrite
        self._source = as_source(config)
        self._choices: list[Choice | Any] = list(plugins)
        named, inputs = split_inputs(model, data, eval, tokenizer)
        self._inputs = RunInputs(**inputs, collator=collator, callbacks=tuple(callbacks))
        for key, value in {**named, ("train",): train}.items():
            if value is not None:
                self._source.set(key, copy.copy(value), "Pipeline()")
        self._source.values.setdefault("train", {})
        self.output_dir = self._source.values["train"].get("output_dir") if is_map(self._source, "train") else None
        self._directory = RunDirectory(Path(self.output_dir or default_directory()))

    def check(self) -> tuple[Problem, ...]:
        """Every problem that can be known before data or weights are read; empty if there is none."""
        try:
            self._resolve(self._directory.check(self._resume, self._overwrite))
        except SftkitError as error:
            return error.problems
        return ()

    def prepare(self) -> PreparedRun:
        """Check, load the tokenizer, prepare the data; no weight is read, and nothing is written but the cache.

        Whether there is a run in the output directory already is not asked.

        Raises:
            ConfigError: every problem of the configuration, before anything is read.
            DataError: if the data cannot be used.
        """
        return self.stages().prepare()

    def stages(self) -> Stages:
        """Check, and give the stages to go through one by one.

        Raises:
            ConfigError: every problem of the configuration.
        """
        return Stages(*self._resolve(), self._inputs)

    def run(self) -> RunResult:
        """Check, load, prepare the data, train, save.

        Raises:
            ConfigError: every problem of the configuration, before anything is read.
            DataError: if the data cannot be used, before weights are read.
            RunError: if the run directory or the training itself stands in the way.
        """
        stages = Stages(*self._resolve(self._directory.check(self._resume, self._overwrite)), self._inputs)
        prepared = stages.prepare()
        display = Display(quiet=not is_main_process())
        manifest = new_manifest(prepared.config, prepared.plugins, prepared.data.summary())
        if not display.quiet:
            show_data(display.console, manifest["data"])
        self._directory.begin(manifest, self._resume)
        model = stages.load_model(prepared.vocabulary, copy.deepcopy(self._inputs.model))
        trainer = self._make_trainer(stages, prepared, model, display)
        metrics = self._train(trainer, stages, prepared)
        self._save(trainer, prepared)
        self._directory.write({**manifest, "data": prepared.data.summary(), "status": "done", "metrics": metrics})
        final = trainer.accelerator.unwrap_model(trainer.model)
        return RunResult(metrics, self._directory.path, final, prepared.tokenizer, prepared.vocabulary.processor)

    def _resolve(self, known: Iterable[Problem] = ()) -> tuple[RunConfig, PluginSet]:
        """The configuration and its plugins; what is wrong with them is told with those ``known`` before."""
        problems = list(known)
        try:
            extra = choices_from(ConfigSource({"plugins": self._choices}))
            config, plugins = resolve(self._source, extra)
        except SftkitError as error:
            raise ConfigError([*error.problems, *problems]) from None
        problems += plugins.unfilled(self._needed_slots())
        if self._inputs.model is not None:
            problems += check_loaded_model(self._inputs.model, config, plugins)
        else:
            plugins.model_options(config)
        problems += _check_streaming(config)
        if problems:
            raise ConfigError(problems)
        train = {**config.train, "output_dir": str(self._directory.path)}
        return config.model_copy(update={"train": train}), plugins

    def _needed_slots(self) -> list[str]:
        """The slots without which there is no run; a loaded object takes the place of its plugin."""
        inputs = self._inputs
        taken = {"load_tokenizer": inputs.tokenizer, "load_model": inputs.model, "make_collator": inputs.collator}
        return ["make_formatter", *(slot for slot, value in taken.items() if value is None)]

    def _make_trainer(self, stages: Stages, prepared: PreparedRun, model: Any, display: Display) -> Any:
        from transformers import PrinterCallback, set_seed

        from sftkit.training.arguments import training_arguments
        from sftkit.training.progress import ProgressCallback
        from sftkit.training.trainer import TokenLossTrainer

        config, data = prepared.config, prepared.data
        arguments = training_arguments(config, has_eval=bool(data.eval))
        if "use_cache" not in config.train:  # the Trainer writes it into the model's configuration, which is saved
            arguments.use_cache = getattr(model.config, "use_cache", False)
        if prepared.vocabulary.processor is not None and arguments.ddp_find_unused_parameters is None:
            # Where a process's batch has no picture, what sees them gets no gradient, and others would wait for it.
            arguments.ddp_find_unused_parameters = True
        set_seed(arguments.seed)
        sets = list(data.eval.values())
        progress = ProgressCallback(display, self._directory.path / "log.jsonl")
        trainer = TokenLossTrainer(
            loss=stages.make_loss(model),
            model=model,
            args=arguments,
            data_collator=prepared.collator,
            train_dataset=data.train,
            eval_dataset=sets[0] if len(sets) == 1 else data.eval or None,
            processing_class=prepared.vocabulary.processor or prepared.tokenizer,
            callbacks=[progress, *stages.callbacks(), *self._inputs.callbacks],
        )
        if sets:  # callbacks see it from the start, not only after the first evaluation
            trainer.callback_handler.eval_dataloader = trainer.get_eval_dataloader(sets[0])
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _train(self, trainer: Any, stages: Stages, prepared: PreparedRun) -> dict[str, float]:
        """Trains, and evaluates inside the same contexts: batches are made for the model as it is in them."""
        checkpoint = self._directory.last_checkpoint() if self._resume else None
        with ExitStack() as stack:
            stack.enter_context(reduced_activations(trainer.model, prepared))
            stack.enter_context(trainer.loss_head.installed())
            stack.enter_context(stages.training(trainer.model))
            trainer.train(resume_from_checkpoint=checkpoint)
            return _final_metrics(trainer, bool(prepared.data.eval))

    def _save(self, trainer: Any, prepared: PreparedRun) -> None:
        trainer.save_model(str(self._directory.path))
        prepared.plugins.hook.export_model(
            model=trainer.accelerator.unwrap_model(trainer.model),
            tokenizer=prepared.tokenizer,
            directory=self._directory.path,
        )


def _check_streaming(config: RunConfig) -> Iterator[Problem]:
    if not config.data.streaming:
        return
    if int(config.train.get("max_steps", -1)) <= 0:
        what = "a stream has no end, and train.max_steps is not set"
        yield Problem(what, "train.max_steps", "set train.max_steps to the number of steps to train")
    if isinstance(config.data.eval, float):
        fix = "name a file or a hub split as data.eval"
        yield Problem("no fraction of a stream can be held out", "data.eval", fix, ("data", "eval"))
    if int(config.train.get("dataloader_num_workers", 0)) > 0:
        what = "a stream is prepared by a thread of each process, not by data workers"
        yield Problem(what, "train.dataloader_num_workers", "leave train.dataloader_num_workers at 0")


def _final_metrics(trainer: Any, has_eval: bool) -> dict[str, float]:
    """The last value of each metric, and the value before the first step as ``NAME_before``."""
    if has_eval and trainer.args.eval_strategy == "no":
        trainer.evaluate()
    metrics: dict[str, float] = {}
    for entry in trainer.state.log_history:
        for name, value in entry.items():
            if not name.startswith(("eval_", "train_")) or name.endswith(("_runtime", "_per_second", "flos")):
                continue
            key = f"{name}_before" if entry.get("step") == 0 and name.startswith("eval_") else name
            metrics[key] = value
    return metrics
