"""The stages of a run, one method each: tokenizer, data, collator, model, training."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sftkit.console import stage
from sftkit.errors import ConfigError, Problem
from sftkit.plugin.selected import PluginSet
from sftkit.run.guards.contexts import activation_context, plugin_contexts, training_contexts
from sftkit.run.guards.kernels import patch_kernels
from sftkit.run.guards.model import require_dtype, require_model, require_rows
from sftkit.run.guards.training import callbacks_of, require_loss
from sftkit.run.guards.vocabulary import add_tokens, require_tokenizer
from sftkit.run.inputs import RunInputs
from sftkit.training.engine import Engine

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.data.filtering import RowFilters
    from sftkit.data.pool import Pool
    from sftkit.data.prepare import PreparedData
    from sftkit.models.choices import Choices
    from sftkit.run.verdict import Verdict
    from sftkit.training.collate import BatchChoice, CheckedCollator
    from sftkit.training.loss import HeadLoss


class Vocabulary(NamedTuple):
    """The run's tokenizer, and what plugins did to it.

    Attributes:
        tokenizer: the tokenizer, with its chat template and added tokens.
        new_token_ids: ids of the tokens that plugins added.
        changed: whether plugins changed EOS, BOS or padding.
        processor: the processor that the tokenizer is part of, if there is one.
        template_set: whether plugins set or changed the chat template.
    """

    tokenizer: Any
    new_token_ids: list[int]
    changed: bool
    processor: Any = None
    template_set: bool = False


@dataclass(frozen=True, repr=False)
class PreparedRun:
    """A run before its weights are loaded.

    Attributes:
        config: the run as resolved.
        plugins: the selected plugins.
        tokenizer: the run's tokenizer, with its chat template and new tokens.
        data: the examples of each split, and what was done to the data.
        collator: makes a batch from a list of examples, and checks it.
        vocabulary: the tokenizer with what plugins did to it.
        model: the loaded model among the run's inputs, if there is one.
        engine: how the processes share the model.
    """

    config: RunConfig
    plugins: PluginSet
    tokenizer: Any
    data: PreparedData
    collator: CheckedCollator
    vocabulary: Vocabulary
    model: Any = None
    engine: Engine = field(default_factory=Engine)

    def __repr__(self) -> str:
        splits = []
        for split, counts in self.data.summary().items():
            known = [f"{counts[what]:,} {what}" for what in ("rows", "tokens", "trained tokens") if what in counts]
            splits.append(f"  {split}: {', '.join(known) or 'a stream'}")
        names = ", ".join(item.name for item in self.plugins.selected)
        return "\n".join([f"PreparedRun: model {self.config.model.name}, plugins {names}", *splits])

    def verdicts(self) -> list[Verdict]:
        """The plugins' verdicts on this run, and those on the completion of held-out rows.

        If the collator breaks its contract, there are no others, since they need its batches.
        """
        from sftkit.run.completing import completion_problems
        from sftkit.run.guards.batches import collator_verdicts
        from sftkit.run.verdict import Verdict

        stage("checking the run")
        if wrong := collator_verdicts(self):
            return wrong
        found = [verdict for _, found in self.plugins.hook.check_prepared(run=self) for verdict in found or ()]
        if self.config.evaluate.metrics:
            problems = completion_problems(self, self.config.evaluate.rows, self.data.eval)
            found += [Verdict("completions", "wrong", each.what, each.fix, each.where) for each in problems]
        return found


@dataclass(frozen=True)
class Stages:
    """The stages of one run, each called once, in the order in which they are listed.

    Attributes:
        config: the run as resolved.
        plugins: the selected plugins.
        inputs: loaded objects that take the place of names.
    """

    config: RunConfig
    plugins: PluginSet
    inputs: RunInputs

    def prepare(self, begun: Callable[[Vocabulary, CheckedCollator], None] | None = None) -> PreparedRun:
        """The stages up to the collator.

        Args:
            begun: called before the data is prepared, with a collator that is made for it.
        """
        stage("loading the tokenizer")
        vocabulary = self.load_tokenizer()
        tokenizer, processor = vocabulary.tokenizer, vocabulary.processor
        if begun is not None:
            begun(vocabulary, self.checked(self.make_collator(tokenizer, processor)))
        stage("preparing the data")
        data = self.prepare_data(tokenizer, processor)
        collator = self.checked(self.make_collator(tokenizer, processor))
        loaded = self.inputs.model
        return PreparedRun(self.config, self.plugins, tokenizer, data, collator, vocabulary, loaded, self.engine)

    def checked(self, collator: Any) -> CheckedCollator:
        """The collator, whose batches are compared with their examples."""
        from sftkit.training.collate import CheckedCollator

        if self.inputs.collator is not None:
            return CheckedCollator(collator)
        name, where = self.plugins.first_filler("make_collator"), self.plugins.responsible("make_collator")
        return CheckedCollator(collator, name, where)

    def load_tokenizer(self) -> Vocabulary:
        """The tokenizer, or a copy of the input's, with what plugins add."""
        from sftkit.models.embeddings import split_processor

        if self.inputs.tokenizer is not None:
            loaded = copy.deepcopy(self.inputs.tokenizer)
        else:
            loaded = _filled(self.plugins.hook.load_tokenizer(config=self.config), "load_tokenizer", self.plugins)
        tokenizer, processor = split_processor(loaded)
        require_tokenizer(tokenizer, self.plugins)
        before, special, template = len(tokenizer), dict(tokenizer.special_tokens_map), tokenizer.chat_template
        add_tokens(tokenizer, self.config, self.plugins)
        changed = special != tokenizer.special_tokens_map
        if processor is not None:
            processor.chat_template = tokenizer.chat_template
        new_token_ids = list(range(before, len(tokenizer)))
        return Vocabulary(tokenizer, new_token_ids, changed, processor, tokenizer.chat_template != template)

    def prepare_data(self, tokenizer: Any, processor: Any = None, pool: Pool | None = None) -> PreparedData:
        """The examples to train on and those held out, prepared by the workers of a pool, if there is one.

        Raises:
            ConfigError: if `data.prepared` was prepared for another run.
            DataError: if the data cannot be used.
        """
        from sftkit.data.prepare import prepare
        from sftkit.data.sources import load_sources, load_streams

        if self.config.data.prepared is not None:
            from sftkit.data.prepared import open_prepared

            return open_prepared(self.config, tokenizer, self.plugins, processor)
        if not self.config.data.streaming:
            sources = load_sources(self.config, self.inputs.train, self.inputs.eval, pool, self._filters())
            return prepare(sources, tokenizer, self.config, self.plugins, processor, pool)
        from sftkit.data.stream import Stream

        streams = load_streams(self.config, self.inputs.train)
        held_out = load_sources(self.config, [], self.inputs.eval)
        del held_out["train"]
        share = {"rank": self.engine.replica, "world_size": self.engine.replicas}
        stream = Stream(streams, tokenizer, self.config, self.plugins, processor, held_out=held_out, **share)
        next(iter(stream))  # so that problems of the data are reported now
        return self.prepare_held_out(tokenizer, processor).with_stream(stream)

    def prepare_held_out(self, tokenizer: Any, processor: Any = None) -> PreparedData:
        """Only the held-out examples."""
        from sftkit.data.prepare import prepare
        from sftkit.data.sources import load_sources

        if self.config.data.prepared is not None:
            return self.prepare_data(tokenizer, processor).held_out()
        train = self.inputs.train if isinstance(self.config.data.eval, float) else []
        sources = load_sources(self.config, train, self.inputs.eval, filters=self._filters())
        del sources["train"]
        return prepare(sources, tokenizer, self.config, self.plugins, processor)

    def _filters(self) -> RowFilters:
        from sftkit.data.filtering import RowFilters

        return RowFilters(self.plugins, self.config)

    def make_collator(self, tokenizer: Any, processor: Any = None) -> Callable[[list[dict[str, Any]]], Any]:
        """The input's collator, else the plugins'."""
        hook = self.plugins.hook.make_collator
        made = self.inputs.collator or hook(tokenizer=tokenizer, processor=processor, config=self.config)
        collator: Callable[[list[dict[str, Any]]], Any] = _filled(made, "make_collator", self.plugins)
        return collator

    @functools.cached_property
    def engine(self) -> Engine:
        """How the processes share the model; made before data is read."""
        made = self.plugins.hook.make_engine(config=self.config)
        if made is not None and not isinstance(made, Engine):
            kind = (
                f"the class {made.__name__}" if isinstance(made, type) else f"an object of type {type(made).__name__}"
            )
            fix = "return an object of a class derived from sftkit.api.Engine"
            where = self.plugins.responsible("make_engine")
            raise ConfigError(Problem(f"it returns {kind}, which is no Engine", where, fix))
        return made or Engine()

    def load_model(
        self,
        vocabulary: Vocabulary,
        loaded: Any = None,
        engine: Engine | None = None,
        choices: Choices | None = None,
    ) -> Any:
        """The model to train: loaded, with a row for each token, patched and adapted.

        Args:
            loaded: an already loaded model; it is changed.
            engine: how the processes share the model, DDP by default; `Engine.place` shards it later. In a process that
                receives the weights there, the model is built without them.
            choices: what plugins have chosen from the weights, and will choose; none by default.
        """
        from transformers import set_seed

        from sftkit.config.train_fields import train_value
        from sftkit.models.adapt import adapted_model
        from sftkit.models.adapters import is_adapter
        from sftkit.models.embeddings import align_special_tokens
        from sftkit.models.unloaded import base_without_weights

        stage("loading the model")
        config, plugins = self.config, self.plugins
        set_seed(int(train_value(config, "seed")))  # for new weights, such as an adapter's
        tokenizer, new_token_ids, changed = vocabulary[:3]
        model, engine = loaded, engine or Engine()
        if model is None:
            options = plugins.model_options(config)
            if engine.receives:
                model = base_without_weights(config, options, vocabulary.processor is not None)
            else:
                model = _filled(plugins.hook.load_model(config=config, options=options), "load_model", plugins)
                require_model(model, "load_model", plugins)
                require_dtype(model, config, plugins)
            if is_adapter(config.model.name):
                model = _filled(plugins.hook.attach_adapter(model=model, config=config), "attach_adapter", plugins)
                require_model(model, "attach_adapter", plugins)
        engine.gather_tables(model)
        rows = model.get_input_embeddings().weight.shape[0]
        new_token_ids = sorted({*new_token_ids, *range(rows, len(tokenizer))})
        plugins.hook.resize_embeddings(model=model, tokenizer=tokenizer, new_token_ids=new_token_ids)
        require_rows(model, tokenizer, plugins)
        align_special_tokens(model, tokenizer, changed)
        patch_kernels(model, config, plugins)
        return adapted_model(model, config, plugins, new_token_ids, choices)

    def make_loss(self, model: Any) -> HeadLoss:
        """What is minimised."""
        from sftkit.training.loss import HeadLoss

        loss = self.plugins.hook.make_loss(model=model, config=self.config)
        return HeadLoss() if loss is None else require_loss(loss, self.plugins)

    def callbacks(self) -> list[Any]:
        """The plugins' `TrainerCallback` objects."""
        return callbacks_of(self.plugins, self.config)

    @contextmanager
    def training(self, model: Any, rows: Any = None, collator: Any = None) -> Iterator[dict[str, BatchChoice]]:
        """Context around the training loop, with the evaluations in it: noise, and the plugins' training contexts.

        Yields what plugins decide about the batches, by their names.

        Args:
            model: the model to train, on its device.
            rows: the training rows, if they are prepared ones.
            collator: makes a batch of them.
        """
        hook, noise = self.plugins.hook, reversed(self.plugins.hook.inject_noise(model=model))
        trying = training_contexts(hook, model, self.config, rows, collator)
        with plugin_contexts("inject_noise", noise, model), trying as choices:
            yield choices


def reduced_activations(model: Any, prepared: PreparedRun) -> AbstractContextManager[Any]:
    """Context around training in which fewer activations are kept, chosen from the largest batch."""
    if not prepared.plugins.hook.reduce_activations.get_hookimpls():
        return nullcontext()
    from sftkit.memory.batch import largest_batch

    known = {"model": model, "config": prepared.config, "batch": largest_batch(prepared), "plugins": prepared.plugins}
    found = prepared.plugins.hook.reduce_activations(**known)
    return nullcontext() if found is None else activation_context(found, prepared.plugins, model)


def _filled(value: Any, slot: str, plugins: PluginSet) -> Any:
    if value is None and plugins.fillers(slot):
        raise ConfigError(Problem("it returns None", plugins.responsible(slot), "return what the slot is for"))
    if value is None:
        raise ConfigError(
            Problem(f"no selected plugin fills the slot {slot}", "plugins", "drop no:NAME for its default")
        )
    return value
