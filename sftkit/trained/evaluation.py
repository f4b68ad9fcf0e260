"""The evaluation of a model that is trained, on the held-out data of its run or on other data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sftkit.config import was_loaded
from sftkit.config.assignments import parse_assignment
from sftkit.config.source import SHORT, ConfigSource, Place
from sftkit.errors import ConfigError, DataError, Problem
from sftkit.plugin.paths import absolute_at
from sftkit.plugin.resolve import resolve
from sftkit.plugin.select import choices_from
from sftkit.run.completing import completion_problems
from sftkit.run.inputs import RunInputs, chosen_metrics
from sftkit.run.manifest import data_section
from sftkit.run.stages import PreparedRun, Stages
from sftkit.run.training import NO_METRICS, loss_context
from sftkit.trained.loading import plugins_again

if TYPE_CHECKING:
    from sftkit.trained.loading import TrainedModel
    from sftkit.training.completions import Completion

#: A plugin of the run is used again if it fills one of these; others load models or act on training alone.
HOOKS = ("make_formatter", "make_packer", "make_collator", "make_loss", "metrics")
#: Fields of the run's section ``train`` on which its evaluations depend.
TRAIN = (
    "per_device_eval_batch_size", "bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval", "use_cpu", "seed",
    "data_seed", "dataloader_num_workers", "dataloader_drop_last", "full_determinism",
)  # fmt: skip
#: Fields of its section ``evaluate`` that say what is evaluated, and not when in a training.
COMPLETING = ("metrics", "rows", "max_new_tokens")
HERE = "command line"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation of a model found.

    Attributes:
        metrics: values by name, as a run logs them, with ``perplexity`` besides.
        completions: by the name of the evaluation set; empty without metrics of completions.
    """

    metrics: dict[str, float]
    completions: dict[str, list[Completion]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluator:
    """Prepared held-out data, on which models are evaluated.

    Attributes:
        run: the configuration, the data and the tokenizer.
        notes: what was decided from the data, in words.
    """

    run: PreparedRun
    stages: Stages
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        trained: TrainedModel,
        data: str | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        assignments: Iterable[str] = (),
        plugins: Iterable[str] = (),
    ) -> Evaluator:
        """Prepare held-out data as the run of a model did.

        Args:
            trained: the model; of a run, its configuration says how data is prepared.
            data: file, glob, directory or hub name of the rows; by default the held-out rows of the run.
            settings: values of the section ``evaluate``. Without ``metrics``, those of the run are computed; if it has
                none, the exact match, if the rows can be completed.
            assignments: texts ``key=value`` that override the configuration.
            plugins: further plugins, as for ``--plugin``; ``no:NAME`` leaves out one of the run.

        Raises:
            ConfigError: with every problem of the configuration, or if there is no data.
            DataError: if the data cannot be used.
        """
        source = _source(trained, data)
        for key, value in (settings or {}).items():
            source.set(("evaluate", key), value, Place(HERE))
        for key, value in (parse_assignment(each, HERE) for each in assignments):
            path = tuple(key.split("."))
            source.set((path[0], SHORT[path[0]]) if len(path) == 1 and path[0] in SHORT else path, value, Place(HERE))
        source.values["model"]["name"] = trained.name
        config, selected = resolve(source, choices_from(ConfigSource({"plugins": list(plugins)})))
        inputs = RunInputs(model=trained.model, tokenizer=trained.processor or trained.tokenizer)
        if problems := selected.unfilled(["make_formatter", "make_collator"]):
            raise ConfigError(problems)
        stages = Stages(config, selected, inputs)
        vocabulary = stages.load_tokenizer()
        prepared = stages.prepare_held_out(vocabulary.tokenizer, vocabulary.processor)
        collator = stages.checked(stages.make_collator(vocabulary.tokenizer, vocabulary.processor))
        run = PreparedRun(config, selected, vocabulary.tokenizer, prepared, collator, vocabulary)
        return _completing(run, inputs, chosen="metrics" in (source.values.get("evaluate") or {}))

    def evaluate(self, trained: TrainedModel) -> Evaluation:
        """Loss, perplexity, token accuracy and the metrics of completions on each evaluation set.

        Args:
            trained: the model. It gets a row in its embeddings for each token of the prepared data that it lacks.
        """
        from sftkit.training.completion_metrics import CompletionMetrics

        config, sets = self.run.config, list(self.run.data.eval.values())
        tokenizer, rows = self.run.tokenizer, trained.model.get_input_embeddings().weight.shape[0]
        new = {"new_token_ids": list(range(rows, len(tokenizer)))}
        self.run.plugins.hook.resize_embeddings(model=trained.model, tokenizer=tokenizer, **new)
        functions = chosen_metrics(config, self.run.plugins)
        completing = CompletionMetrics(functions, config.evaluate) if functions else None
        with TemporaryDirectory(prefix="sftkit-") as directory, ExitStack() as stack:
            trainer = _trainer(self.run, self.stages, trained.model, completing, directory)
            stack.enter_context(trainer.loss_head.installed())
            stack.enter_context(self.stages.training(trainer.model))
            stack.enter_context(loss_context(trainer, self.run, self.run.collator))
            found = trainer.evaluate(sets[0] if len(sets) == 1 else dict(self.run.data.eval))
        metrics = {
            name: value for name, value in found.items() if name.startswith("eval_") and not name.endswith(NO_METRICS)
        }
        made = completing.completions if completing else {}
        completions = {key.removeprefix("eval_"): value for key, value in made.items()}
        return Evaluation(self._with_perplexity(metrics), completions)

    def _with_perplexity(self, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics with a perplexity after each loss that is a negative log-likelihood."""
        if self.run.plugins.fillers("make_loss"):
            return metrics
        found: dict[str, float] = {}
        for name, value in metrics.items():
            found[name] = value
            if name.endswith("_loss"):
                found[f"{name.removesuffix('loss')}perplexity"] = math.exp(value) if value < 700 else math.inf
        return found


def base_name(trained: TrainedModel, fix: str = "leave out the base") -> str:
    """The name of the model that a run started from; a relative path is absolute.

    Args:
        trained: the model of the run.
        fix: what to do if there is no base.

    Raises:
        ConfigError: if no run trained the model, or the run started from random weights or a loaded model.
    """
    if trained.manifest is None:
        raise ConfigError(Problem("no run trained this model, so its base is unknown", trained.name, fix))
    section = trained.manifest["config"]["model"]
    if section["init"] == "random" or was_loaded(section["name"]):
        kind = "random weights" if section["init"] == "random" else "a model that was loaded in Python"
        raise ConfigError(Problem(f"the run started from {kind}, which cannot be loaded again", trained.name, fix))
    return str(absolute_at(("model", "name"), section["name"], trained.manifest.get("working_directory", "")))


def _source(trained: TrainedModel, data: str | None) -> ConfigSource:
    """The configuration of the run as far as evaluations depend on it; of any other model, the defaults.

    Raises:
        ConfigError: if there is no data.
    """
    if trained.manifest is None:
        if data is None:
            what = "no run trained this model, so it has no held-out data"
            raise ConfigError(Problem(what, trained.name, "name a file with --data"))
        return ConfigSource({"model": {"name": trained.name}, "data": {"train": data, "eval": data}})
    config = trained.manifest["config"]
    chosen = config["evaluate"]
    section = data_section(trained.manifest)
    if data is not None:
        section |= {"eval": data}
    elif section["eval"] is None or was_loaded(section["train" if _is_fraction(section) else "eval"]):
        what = "the run has no held-out data" if section["eval"] is None else "the run's data was loaded in Python"
        raise ConfigError(Problem(what, trained.name, "name a file with --data"))
    values = {
        "model": {"name": trained.name, "dtype": config["model"]["dtype"]},
        "data": {**section, "streaming": False},
        "train": {name: value for name, value in config["train"].items() if name in TRAIN},
        "evaluate": {name: chosen[name] for name in COMPLETING if name != "metrics" or chosen[name]},
        "plugins": plugins_again(trained.manifest, HOOKS),
    }
    return ConfigSource(values)


def _is_fraction(section: Mapping[str, Any]) -> bool:
    return isinstance(section["eval"], float)


def _completing(run: PreparedRun, inputs: RunInputs, chosen: bool) -> Evaluator:
    """The evaluator, with the exact match if no metrics were chosen and the rows can be completed.

    Raises:
        DataError: if metrics were chosen, and the rows cannot be completed.
    """
    config, notes = run.config, []
    if config.evaluate.metrics or not chosen:
        problems = completion_problems(run, config.evaluate.rows, run.data.eval)
        if problems and chosen:
            raise DataError(problems)
        notes = [f"nothing is completed: {problem.what}" for problem in problems]
        metrics = config.evaluate.metrics if chosen else [] if problems else ["exact_match"]
        section = config.evaluate.model_copy(update={"metrics": metrics})
        config = config.model_copy(update={"evaluate": section})
        run = replace(run, config=config)
    return Evaluator(run, Stages(config, run.plugins, inputs), tuple(notes))


def _trainer(run: PreparedRun, stages: Stages, model: Any, completing: Any, directory: str) -> Any:
    """A trainer that evaluates as the run's did."""
    from transformers import PrinterCallback, trainer

    from sftkit.training.arguments import training_arguments
    from sftkit.training.attributes import replaced
    from sftkit.training.trainer import TokenLossTrainer

    once = {"eval_strategy": "no", "load_best_model_at_end": False}  # evaluations are not those of a training
    section = run.config.evaluate.model_copy(update={"every": None, "best": None, "patience": None})
    train = {**run.config.train, **once, "output_dir": directory, "report_to": "none"}
    config = run.config.model_copy(update={"train": train, "evaluate": section})
    arguments = training_arguments(config, has_eval=True)
    arguments.use_cache = getattr(model.config, "use_cache", False)
    with replaced(trainer, "validate_quantization_for_training", lambda model: None):  # nothing is trained
        made = TokenLossTrainer(
            loss=stages.make_loss(model),
            completing=completing,
            model=model,
            args=arguments,
            data_collator=run.collator,
            processing_class=run.vocabulary.processor or run.tokenizer,
        )
    made.remove_callback(PrinterCallback)
    return made
