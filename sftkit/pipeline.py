"""The flow of a run, from a configuration to a saved model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sftkit.config.resolve import resolve
from sftkit.config.source import Source
from sftkit.console import Display, show_data
from sftkit.errors import ConfigError, Problem, SftkitError
from sftkit.given import Given, as_source, check_loaded_model, is_map, split_loaded
from sftkit.registry import Choice, PluginSet, choices_from
from sftkit.rundir import RunDirectory, default_directory, is_main_process, new_manifest

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.data.prepare import Prepared
    from sftkit.plugin import Plugin

logger = logging.getLogger("sftkit")


@dataclass(frozen=True)
class RunResult:
    """What a run made.

    Attributes:
        metrics: final values by name; ``NAME_before`` is the value before training.
        directory: where the model, tokenizer, manifest and logs are.
        model: the trained model, with its adapter if there is one.
        tokenizer: its tokenizer, with its chat template.
    """

    metrics: dict[str, float]
    directory: Path
    model: Any
    tokenizer: Any


class Vocabulary(NamedTuple):
    """The run's tokenizer, the ids of the tokens that plugins added, and whether they changed EOS, BOS or padding."""

    tokenizer: Any
    new_token_ids: list[int]
    changed: bool


@dataclass(frozen=True)
class Ready:
    """All that a run has before it reads a weight.

    Attributes:
        config: the run as resolved.
        plugins: the selected plugins.
        tokenizer: the run's tokenizer, with its chat template and new tokens.
        data: the examples of each split, and what was done to the data.
        collator: makes a batch from a list of examples.
        model: the loaded model that was given instead of a name, if one was.
    """

    config: RunConfig
    plugins: PluginSet
    tokenizer: Any
    data: Prepared
    collator: Callable[[list[dict[str, Any]]], Any]
    vocabulary: Vocabulary
    model: Any = None


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
        tokenizer: name, or a loaded tokenizer.
        formatting: your formatting function.
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
        config: str | Path | Mapping[str, Any] | Source | None = None,
        tokenizer: Any = None,
        formatting: Callable[..., Any] | str | None = None,
        collator: Callable[[list[dict[str, Any]]], Any] | None = None,
        callbacks: Iterable[Any] = (),
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self._resume, self._overwrite = resume, overwrite
        self._source = as_source(config)
        self._choices: list[Choice | Any] = list(plugins)
        named, given = split_loaded(model, data, eval, tokenizer)
        self._given = Given(**given, collator=collator, callbacks=tuple(callbacks))
        for key, value in {**named, ("data", "formatting"): formatting, ("train",): train}.items():
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

    def prepare(self) -> Ready:
        """Check, load the tokenizer, prepare the data; no weight is read, and nothing is written but the cache.

        Whether there is a run in the output directory already is not asked.

        Raises:
            ConfigError: every problem of the configuration, before anything is read.
            DataError: if the data cannot be used.
        """
        return self._prepare(*self._resolve())

    def _prepare(self, config: RunConfig, plugins: PluginSet) -> Ready:
        vocabulary = self._load_tokenizer(config, plugins)
        tokenizer = vocabulary.tokenizer
        data = self._prepare_data(config, plugins, tokenizer)
        collator = self._given.collator or plugins.hook.make_collator(tokenizer=tokenizer, config=config)
        collator = _keeping_weights(_filled(collator, "make_collator"), data)
        return Ready(config, plugins, tokenizer, data, collator, vocabulary, self._given.model)

    def run(self) -> RunResult:
        """Check, load, prepare the data, train, save.

        Raises:
            ConfigError: every problem of the configuration, before anything is read.
            DataError: if the data cannot be used, before weights are read.
            RunError: if the run directory or the training itself stands in the way.
        """
        ready = self._prepare(*self._resolve(self._directory.check(self._resume, self._overwrite)))
        config, plugins, tokenizer, data = ready.config, ready.plugins, ready.tokenizer, ready.data
        display = Display(quiet=not is_main_process())
        manifest = new_manifest(config, plugins, data.summary())
        if not display.quiet:
            show_data(display.console, manifest["data"])
        self._directory.begin(manifest, self._resume)
        model = self._load_model(config, plugins, ready.vocabulary)
        trainer = self._make_trainer(ready, model, display)
        metrics = self._train(trainer, ready)
        self._save(trainer, plugins, tokenizer)
        self._directory.write({**manifest, "data": data.summary(), "status": "done", "metrics": metrics})
        final = trainer.accelerator.unwrap_model(trainer.model)
        return RunResult(metrics, self._directory.path, final, tokenizer)

    def _resolve(self, known: Iterable[Problem] = ()) -> tuple[RunConfig, PluginSet]:
        """The configuration and its plugins; what is wrong with them is told with those ``known`` before."""
        problems = list(known)
        try:
            extra = choices_from(Source({"plugins": self._choices}))
            config, plugins = resolve(self._source, extra)
        except SftkitError as error:
            raise ConfigError([*error.problems, *problems]) from None
        problems += plugins.unfilled(self._needed_slots())
        if self._given.model is not None:
            problems += check_loaded_model(self._given.model, config, plugins)
        else:
            plugins.model_options(config)
        problems += _check_streaming(config)
        if problems:
            raise ConfigError(problems)
        train = {**config.train, "output_dir": str(self._directory.path)}
        return config.model_copy(update={"train": train}), plugins

    def _needed_slots(self) -> list[str]:
        """The slots without which there is no run; a loaded object takes the place of its plugin."""
        given = self._given
        taken = {"load_tokenizer": given.tokenizer, "load_model": given.model, "make_collator": given.collator}
        return ["make_formatter", *(slot for slot, value in taken.items() if value is None)]

    def _load_tokenizer(self, config: RunConfig, plugins: PluginSet) -> Vocabulary:
        if self._given.tokenizer is not None:
            tokenizer = copy.deepcopy(self._given.tokenizer)
        else:
            tokenizer = _filled(plugins.hook.load_tokenizer(config=config), "load_tokenizer")
        before, special = len(tokenizer), dict(tokenizer.special_tokens_map)
        plugins.hook.add_tokens(tokenizer=tokenizer, config=config)
        changed = special != tokenizer.special_tokens_map
        return Vocabulary(tokenizer, list(range(before, len(tokenizer))), changed)

    def _prepare_data(self, config: RunConfig, plugins: PluginSet, tokenizer: Any) -> Prepared:
        from sftkit.data.prepare import prepare
        from sftkit.data.sources import load_sources

        if not config.data.streaming:
            sources = load_sources(config, self._given.train, self._given.eval)
            return prepare(sources, tokenizer, config, plugins)
        from sftkit.data.sources import load_streams
        from sftkit.data.stream import Stream

        stream = Stream(load_streams(config, self._given.train), tokenizer, config, plugins)
        next(iter(stream))  # what is wrong with the data is told now
        held_out = load_sources(config, [], self._given.eval)
        del held_out["train"]
        return prepare(held_out, tokenizer, config, plugins).with_stream(stream)

    def _load_model(self, config: RunConfig, plugins: PluginSet, vocabulary: Vocabulary) -> Any:
        from transformers import set_seed

        from sftkit.adapt import adapted_model
        from sftkit.models import align_special_tokens

        set_seed(int(config.train.get("seed", 42)))  # new weights, as an adapter's, are drawn from it
        tokenizer, new_token_ids, changed = vocabulary
        if self._given.model is not None:
            model = copy.deepcopy(self._given.model)
        else:
            options = plugins.model_options(config)
            model = _filled(plugins.hook.load_model(config=config, options=options), "load_model")
        rows = model.get_input_embeddings().weight.shape[0]
        new_token_ids = sorted({*new_token_ids, *range(rows, len(tokenizer))})
        plugins.hook.resize_embeddings(model=model, tokenizer=tokenizer, new_token_ids=new_token_ids)
        align_special_tokens(model, tokenizer, changed)
        plugins.hook.patch_kernels(model=model, config=config)
        return adapted_model(model, config, plugins, new_token_ids)

    def _make_trainer(self, ready: Ready, model: Any, display: Display) -> Any:
        from transformers import PrinterCallback, set_seed

        from sftkit.training.arguments import training_arguments
        from sftkit.training.loss import HeadLoss
        from sftkit.training.progress import Progress
        from sftkit.training.trainer import SFTTrainer

        config, data = ready.config, ready.data
        arguments = training_arguments(config, has_eval=bool(data.eval))
        if "use_cache" not in config.train:  # the Trainer writes it into the model's configuration, which is saved
            arguments.use_cache = getattr(model.config, "use_cache", False)
        set_seed(arguments.seed)
        own = [callback for found in ready.plugins.hook.trainer_callbacks(config=config) for callback in found]
        sets = list(data.eval.values())
        loss = ready.plugins.hook.make_loss(model=model, config=config)
        trainer = SFTTrainer(
            loss=HeadLoss() if loss is None else loss,
            model=model,
            args=arguments,
            data_collator=ready.collator,
            train_dataset=data.train,
            eval_dataset=sets[0] if len(sets) == 1 else data.eval or None,
            processing_class=ready.tokenizer,
            callbacks=[Progress(display, self._directory.path / "log.jsonl"), *own, *self._given.callbacks],
        )
        if sets:  # callbacks see it from the start, not only after the first evaluation
            trainer.callback_handler.eval_dataloader = trainer.get_eval_dataloader(sets[0])
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _train(self, trainer: Any, ready: Ready) -> dict[str, float]:
        """Trains, and evaluates inside the same contexts: batches are made for the model as it is in them."""
        checkpoint = self._directory.last_checkpoint() if self._resume else None
        model, config, hook = trainer.model, ready.config, ready.plugins.hook
        with ExitStack() as stack:
            stack.enter_context(_reduced_activations(model, ready))
            stack.enter_context(trainer.loss_head.installed())
            for context in reversed(hook.inject_noise(model=model)):
                stack.enter_context(context)
            for context in hook.training_context(model=model, config=config):
                stack.enter_context(context)
            trainer.train(resume_from_checkpoint=checkpoint)
            return _final_metrics(trainer, bool(ready.data.eval))

    def _save(self, trainer: Any, plugins: PluginSet, tokenizer: Any) -> None:
        trainer.save_model(str(self._directory.path))
        plugins.hook.export_model(
            model=trainer.accelerator.unwrap_model(trainer.model), tokenizer=tokenizer, directory=self._directory.path
        )


def _reduced_activations(model: Any, ready: Ready) -> AbstractContextManager[Any]:
    if not ready.plugins.hook.reduce_activations.get_hookimpls():
        return nullcontext()
    from sftkit.memory.batch import largest_batch

    batch = largest_batch(ready.data.train, ready.collator, ready.config)
    found = ready.plugins.hook.reduce_activations(model=model, config=ready.config, batch=batch)
    return nullcontext() if found is None else found


def _check_streaming(config: RunConfig) -> Iterator[Problem]:
    if not config.data.streaming:
        return
    if int(config.train.get("max_steps", -1)) <= 0:
        what = "a stream has no end, and train.max_steps is not set"
        yield Problem(what, "train.max_steps", "set train.max_steps to the number of steps to train")
    if isinstance(config.data.eval, float):
        mend = "name a file or a hub split as data.eval"
        yield Problem("no fraction of a stream can be held out", "data.eval", mend, ("data", "eval"))
    if int(config.train.get("dataloader_num_workers", 0)) > 0:
        what = "a stream is prepared by a thread of each process, not by data workers"
        yield Problem(what, "train.dataloader_num_workers", "leave train.dataloader_num_workers at 0")


def _filled(value: Any, slot: str) -> Any:
    if value is None:
        raise ConfigError(
            Problem(f"no selected plugin fills the slot {slot}", "plugins", "drop no:NAME for its default")
        )
    return value


def _keeping_weights(collator: Any, data: Prepared) -> Any:
    """The collator, seen to keep the weights of tokens: now on the rows that have them, on a stream batch by batch."""
    from sftkit.training.collate import KeepsWeights

    checked = KeepsWeights(collator)
    for rows in data.splits.values():
        if not hasattr(rows, "column_names"):
            collator = checked
        elif "loss_weights" in rows.column_names:
            checked([rows[0]])
    return collator


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
