"""The flow of a run, from a configuration to a saved model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.config.source import ConfigSource, Place
from sftkit.config.train_fields import evaluates_only
from sftkit.console import Display, show_data, stage, working
from sftkit.data.counts import note_lines, without_notes
from sftkit.errors import ConfigError, Problem, SftkitError
from sftkit.garbage import uncollected
from sftkit.ranks import is_main_process
from sftkit.run.changes import change_name
from sftkit.run.config_file import WrittenConfig, write_config
from sftkit.run.continuing import announce, earlier_choices, earlier_run, require_unchanged
from sftkit.run.directory import EarlierRun, Resume, RunDirectory, default_directory
from sftkit.run.inputs import Configuration, RunInputs, as_source, is_map, split_inputs
from sftkit.run.interruption import Interruption
from sftkit.run.launcher import launch_problems
from sftkit.run.manifest import as_read
from sftkit.run.place import agreed_place, require_seen, seen_by_all
from sftkit.run.processes import Processes
from sftkit.run.resolving import resolve_run
from sftkit.run.result import Best, RunResult
from sftkit.run.stages import PreparedRun, Stages
from sftkit.run.verdict import stop_if_wrong
from sftkit.run.wording import for_the_caller, named, problem_in_python

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.plugin.base import Plugin
    from sftkit.plugin.select import Choice
    from sftkit.plugin.selected import PluginSet
    from sftkit.run.first_rows import FirstRows
    from sftkit.run.preview import Preview

logger = logging.getLogger("sftkit")


class Pipeline:
    """A fine-tuning run.

    Args:
        model: directory or hub name, the mapping of the section ``model``, or a loaded PreTrainedModel or PeftModel;
            a loaded model is copied before it is trained.
        data: file, glob, directory or hub name, the mapping of the section ``data``, or a loaded Dataset,
            DatasetDict or list of rows.
        eval: held-out data, as ``data``; or a fraction of it, or a dict of several sets.
        evaluate: the mapping of the section ``evaluate``, such as ``{"metrics": ["rouge"]}``.
        plugins: names (``"neftune:alpha=10"``, ``"no:pad"``), plugin objects, or one-key mappings of name to options.
        train: fields of `transformers.TrainingArguments`.
        config: path of a YAML file, a mapping of sections, or a list of these, of which later ones override earlier
            ones; the other arguments override it.
        tokenizer: name, or a loaded tokenizer, or a loaded processor, which is then saved with the model.
        collator: used instead of the collator plugin.
        callbacks: further `transformers.TrainerCallback` objects.
        compute_metrics: called with the predictions and labels of each evaluation, as in `transformers.Trainer`; what
            it returns is logged, can be ``train.metric_for_best_model``, and is in the metrics of the run.
        resume: continue from the newest checkpoint in ``train.output_dir``; with ``"auto"``, begin if there is no run,
            or if it has not saved anything yet.
        overwrite: replace a run that is there. Its files are removed once the new one is loaded; others are kept.
        allow_changes: what may differ from the run that is resumed, such as ``data`` or ``train.learning_rate``.

    Examples:
        >>> result = Pipeline(model="demo-dir", data="train.jsonl", plugins=["packing"]).run()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any = None,
        data: Any = None,
        *,
        eval: Any = None,
        evaluate: Mapping[str, Any] | None = None,
        plugins: Iterable[str | Plugin | Mapping[str, Any]] = (),
        train: Mapping[str, Any] | None = None,
        config: Configuration = None,
        tokenizer: Any = None,
        collator: Callable[[list[dict[str, Any]]], Any] | None = None,
        callbacks: Iterable[Any] = (),
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        resume: Resume = False,
        overwrite: bool = False,
        allow_changes: Iterable[str] = (),
    ) -> None:
        self._resume, self._overwrite, self._allowed = resume, overwrite, tuple(map(change_name, allow_changes))
        self.from_command = isinstance(config, ConfigSource)  # commands read the configuration themselves
        self._source = as_source(config)
        self._choices: list[Choice | Any] = list(plugins)
        named, inputs = split_inputs(model, data, eval, tokenizer)
        self._inputs = RunInputs(
            **inputs, collator=collator, callbacks=tuple(callbacks), compute_metrics=compute_metrics
        )
        for key, value in {**named, ("train",): train, ("evaluate",): evaluate}.items():
            if value is not None:
                self._source.set(key, copy.copy(value), Place("Pipeline()"))
        self._source.values.setdefault("train", {})
        directory = self._source.values["train"].get("output_dir") if is_map(self._source, "train") else None
        self.output_dir = directory if isinstance(directory, str) else None  # another type is an error of the check
        self._directory = RunDirectory(Path(self.output_dir or default_directory(self._source, resume or overwrite)))

    def __repr__(self) -> str:
        values = self._source.values
        shown = [f"{section} {named(values.get(section))}" for section in ("model", "data") if values.get(section)]
        return f"Pipeline({', '.join([*shown, f'in {self._directory.path}'])})"

    def check(self) -> tuple[Problem, ...]:
        """Every problem that can be known before data or weights are read; empty if there is none."""
        try:
            run = Stages(*self._resolve([*launch_problems(planned=True), *self._directory_problems()]), self._inputs)
            earlier_run(self._directory, run, self._resume, self._allowed, contents=False)
        except SftkitError as error:
            return error.problems if self.from_command else tuple(map(problem_in_python, error.problems))
        return ()

    @for_the_caller
    def written(self) -> WrittenConfig:
        """The configuration as the run would write it to ``config.yaml``.

        Raises:
            ConfigError: every problem of the configuration.
        """
        return write_config(*self._resolve(), self._source, self._inputs, self._directory.path)

    @for_the_caller
    def stages(self) -> Stages:
        """Check the configuration, and return the stages of the run, for callers that go through them one by one.

        Ignores a run that is already in the output directory, and values of the section ``train`` that only a training
        would refuse: the caller has a trainer of its own.

        Raises:
            ConfigError: every problem of the configuration.
        """
        return Stages(*self._resolve(trains=False), self._inputs)

    @for_the_caller
    def prepare(self, first: FirstRows | None = None) -> PreparedRun:
        """Check, load the tokenizer, prepare the data. Reads no weights, and writes nothing but the cache.

        Args:
            first: rows to show before all data is read. What only libraries find wrong is reported after these.

        Raises:
            ConfigError: every problem of the configuration, before anything is read.
            DataError: if the data cannot be used.
        """
        if first is None:
            return Stages(*self._resolve(), self._inputs).prepare()
        return first.prepare(Stages(*self._resolve(rehearses=False), self._inputs), then=self._resolve)

    def preview(self, split: str = "train", rows: int = 3, row: int = 1) -> Preview:
        """What the model sees and what it is trained on: some rows, as one batch of the training.

        Args:
            split: ``train``, or the name of an evaluation set.
            rows: how many rows.
            row: the number of the first one, from 1.

        Returns:
            An object that is shown as text, and in colours in a notebook.

        Raises:
            ConfigError: as of `prepare`, or if there is no such split or row.
            DataError: if the data cannot be used.
        """
        from sftkit.run.preview import preview

        return preview(self.prepare(), split, rows, row)

    def run(self, processes: Processes | None = None) -> RunResult:
        """Check, prepare the data, check it, load the model, train, save.

        A run without steps (``max_steps`` or ``num_train_epochs`` is 0) only evaluates the model, and saves none.
        Resuming a run that is finished does nothing.

        Args:
            processes: those of the run, if they have met already.

        Raises:
            ConfigError: every problem of the configuration, before anything is read.
            DataError: if the data cannot be used, before weights are read.
            RunError: if another run holds the run directory, or the run that is resumed was another, before weights are
                read; if the prepared run would be wrong; or if the device fails.
            TrainingError: if the training fails, such as by a loss that is not finite, also in another process.
            Interrupted: if a signal or the deadline ends the run; signals only in the main thread.
        """
        if processes is not None:
            return self._run_in(processes)
        with Processes() as processes:
            return self._run_in(processes)

    @for_the_caller
    def _run_in(self, processes: Processes) -> RunResult:
        quiet = not is_main_process()
        with Interruption() as interruption, working("checking the configuration", quiet=quiet):
            directory, again = agreed_place(processes, self._directory.path, self.output_dir is not None)
            self._directory = RunDirectory(directory)
            if again:
                self._resume, self._overwrite = "auto", False
            config, plugins = self._resolve(self._directory_problems())
            interruption.configure(config.run)
            processes.watch(config.run.timeout)
            with self._directory.locked():
                if problems := self._directory_problems():  # another run may have begun or ended since
                    raise ConfigError(problems)
                stages = Stages(config, plugins, self._inputs)
                found = earlier_run(self._directory, stages, self._resume, self._allowed, contents=True)
                return self._run(stages, *found, interruption, processes)

    def _run(
        self,
        stages: Stages,
        earlier: EarlierRun | None,
        manifest: dict[str, Any],
        interruption: Interruption,
        processes: Processes,
    ) -> RunResult:
        """The run in its directory, which is written to only after everything is loaded."""
        with uncollected(freeze=self.from_command):
            from sftkit.models.unloaded import copy_of
            from sftkit.run.sample_rows import sample_rows, write_sample_rows
            from sftkit.run.tracking import begin_trackers
            from sftkit.run.training import make_trainer, train_or_evaluate
            from sftkit.training.arguments import training_arguments

        config, directory = stages.config, self._directory.path
        require_seen(seen := seen_by_all(processes, directory), directory, earlier, stages.engine)
        prepared = stages.prepare()
        manifest["data"] = as_read(prepared.data.summary())
        require_unchanged(earlier, manifest, self._allowed)
        if earlier is not None and earlier.finished(manifest):
            logger.info("the run in %s is finished: there is nothing to resume", directory)
            return RunResult.finished(earlier.manifest, directory)
        display = Display(quiet=not is_main_process())
        self._check_prepared(prepared, manifest, display)
        require_unchanged(earlier, manifest, self._allowed)
        trackers = begin_trackers(prepared, manifest, earlier)
        with closing(display), trackers, closing(prepared.engine) as engine:
            metrics_function = self._inputs.compute_metrics
            choices = earlier_choices(earlier, processes)
            processes.meet("the prepared data")  # before they form a group, in which they wait for a limited time
            arguments = training_arguments(config, bool(prepared.data.eval), metrics_function is not None, engine)
            with engine.loading():
                loaded = copy_of(self._inputs.model, weights=not engine.receives)
                model = stages.load_model(prepared.vocabulary, loaded, engine, choices)
            manifest["choices"] = choices.made
            processes.meet("the loaded model")
            model = engine.place(model, arguments)
            rows = sample_rows(prepared) if is_main_process() else []  # before the trainer sets the seed
            trainer = make_trainer(
                stages, prepared, model, display, directory, interruption, trackers, arguments, engine, processes
            )
            trainer.saver.shared = seen
            changes = announce(earlier, manifest)
            written = write_config(config, stages.plugins, self._source, self._inputs, directory)
            stage("training")
            with self._directory.begin(manifest, earlier, changes, written.text, processes) as record:
                if rows:
                    write_sample_rows(directory, rows)
                metrics = train_or_evaluate(trainer, stages, prepared, record, earlier)
                trackers.finish(trainer, metrics)
        return RunResult(
            metrics,
            directory,
            trainer.accelerator.unwrap_model(trainer.model),
            prepared.tokenizer,
            prepared.vocabulary.processor,
            status="evaluated" if evaluates_only(config) else "trained",
            best=Best.of(trainer),
            stopped=trainer.best.stopped,
            trained=record.values["trained"],
        )

    def _check_prepared(self, prepared: PreparedRun, manifest: dict[str, Any], display: Display) -> None:
        """Show the data, check it, and complete the manifest with what is known before weights are loaded.

        Raises:
            RunError: if the run would be wrong.
        """
        from sftkit.models.identity import weights_identity

        config = prepared.config
        if not display.quiet:
            show_data(display.console, {split: without_notes(counts) for split, counts in manifest["data"].items()})
            for line in note_lines(manifest["data"]):
                display.console.print(line, markup=False)
        manifest["stats"] = as_read({split: stats.as_dict() for split, stats in prepared.data.stats.items()})
        verdicts = prepared.verdicts()
        stop_if_wrong(verdicts)
        manifest["warnings"] = [as_read(asdict(verdict)) for verdict in verdicts if verdict.status == "warn"]
        manifest["columns"] = prepared.data.columns
        manifest["weights"] = as_read(weights_identity(config, self._inputs.model, config.run.digest_weights))

    def _directory_problems(self) -> list[Problem]:
        problems = self._directory.check(self._resume, self._overwrite)
        if self._resume not in (True, False, "auto"):
            problems.append(Problem(f"resume={self._resume!r}", "Pipeline()", "use True, False or 'auto'"))
        if self._allowed and not self._resume:
            problems.append(Problem("nothing is resumed", "--allow-change", "use it with --resume"))
        return problems

    def _resolve(self, known: Iterable[Problem] = (), **asked: bool) -> tuple[RunConfig, PluginSet]:
        """The configuration and its plugins.

        Args:
            known: problems that were found before.
            asked: ``trains`` and ``rehearses``, as of `resolve_run`.

        Raises:
            ConfigError: every problem of the configuration and the inputs, and the ``known`` ones.
        """
        with uncollected(freeze=self.from_command):
            config, plugins = resolve_run(self._source, self._choices, self._inputs, known, **asked)
        train = {**config.train, "output_dir": str(self._directory.path)}
        return config.model_copy(update={"train": train}), plugins
