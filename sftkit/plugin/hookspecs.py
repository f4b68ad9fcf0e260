"""The contract between the core and its plugins: the hooks, in the order in which a run first calls them.

A run calls them like this; a test holds this listing against a real run::

    check_run                               # every problem of the configuration, before anything is read
    metrics                                 # of completions; one name from two plugins is such a problem
    model_options                           # and so is one key from two plugins
    make_engine
    load_tokenizer
    add_tokens
    for split in train, evaluation sets:    # or read back from the cache
        make_packer
        filter_rows                         # of the training rows alone, and of all of them together
        for source in split:
            make_formatter
            make_tokenizing                 # once, for a source of thousands of rows
    make_collator
    check_prepared                          # the data, and what the run will take; no weights are loaded yet
    model_options
    load_model
    attach_adapter                          # if model.name is a directory with an adapter
    resize_embeddings
    patch_kernels
    prepare_base
    adapt_model
    make_loss
    trainer_callbacks
    with reduce_activations:
        with inject_noise, training_context:
            make_optimizer              # its schedule is that of train.lr_scheduler_type
            train
            save the model, before anything else can fail
            evaluate, if the last step was not
    export_model
    merge_adapter                           # by `sftkit export`, if the model has an adapter
    quantize_model                          # by `sftkit export --quantize`

A *slot* (``firstresult``) is filled by one plugin: it stops at the first result that is not None. The defaults come
last, and two selected plugins on one slot are an error before anything is loaded. A *broadcast* calls every plugin, in
the order in which they were named, and collects ``(plugin name, result)`` pairs; a wrapper of a broadcast receives
these pairs. An implementation may take any subset of a hook's arguments. Hooks build things once: none is called
inside a loop over rows or steps, and what they return can be pickled. An exception inside a hook names the plugin and
the hook.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from torch import Tensor
    from torch.optim import Optimizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback

    from sftkit.config import RunConfig
    from sftkit.data.counts import Counts
    from sftkit.data.documents import Formatter, RowFilter
    from sftkit.data.packs import Packer
    from sftkit.data.stream import Stream
    from sftkit.data.tokenizing.engine import TokenizingEngine
    from sftkit.errors import Problem
    from sftkit.models.choices import Choices
    from sftkit.plugin.selected import PluginSet
    from sftkit.run.stages import PreparedRun
    from sftkit.run.verdict import Verdict
    from sftkit.training.collate import Collator
    from sftkit.training.completion_metrics import Metric
    from sftkit.training.engine import Engine
    from sftkit.training.loss import HeadLoss

hookspec = pluggy.HookspecMarker("sftkit")


class Hooks:
    """Every hook of sftkit. ``docs/hooks.md`` has an example of each. ``config`` is the run as resolved."""

    @hookspec
    def check_run(self, config: RunConfig, plugins: PluginSet) -> Iterable[Problem]:
        """Broadcast: what this plugin cannot do in this run, and the fix. Called before anything is read.

        Args:
            plugins: the selected plugins; ``plugins.fillers("adapt_model")`` names those that fill a slot.
        """
        raise NotImplementedError

    @hookspec
    def metrics(self, config: RunConfig) -> Mapping[str, Metric]:
        """Broadcast, merged: the metrics that ``evaluate.metrics`` may name. One name from two plugins is an error.

        Returns:
            Functions by name, from a sequence of `Completion` to a number, or numbers by name; see ``docs/hooks.md``.
        """
        raise NotImplementedError

    @hookspec
    def model_options(self, config: RunConfig) -> Mapping[str, Any]:
        """Broadcast, merged: keyword arguments for ``from_pretrained``. One key from two plugins is an error."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def make_engine(self, config: RunConfig) -> Engine | None:
        """Slot: how the processes share the model; by default each has a copy. Called before anything is read."""

    @hookspec(firstresult=True)
    def load_tokenizer(self, config: RunConfig) -> PreTrainedTokenizerBase | ProcessorMixin | None:
        """Slot: load the tokenizer. It is loaded before the data is prepared, and the data before the weights.

        Returns:
            The tokenizer, or a processor: the run then uses the processor's tokenizer, and saves the processor.
        """

    @hookspec
    def add_tokens(self, tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> None:
        """Broadcast: set the chat template, add special tokens. Changes the tokenizer.

        The model's embeddings follow: see ``resize_embeddings``.

        Args:
            tokenizer: the run's tokenizer.
        """

    @hookspec(firstresult=True)
    def make_packer(self, split: str, config: RunConfig, counts: Counts) -> Packer | None:
        """Slot: make a packer, which rearranges examples into rows of ``config.data.max_length``; None: no packing.

        Args:
            split: ``"train"``, or the name of an evaluation set.
            counts: where to count what is done to the data.
        """

    @hookspec
    def filter_rows(self, columns: Features, config: RunConfig) -> RowFilter | None:
        """Broadcast: decides which rows of the training data are kept, and why others are dropped.

        Args:
            columns: the columns of all training data, name to feature type (`datasets.Features`).

        Returns:
            A filter, which gets every row; None to keep all.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def make_formatter(
        self, columns: Features, tokenizer: PreTrainedTokenizerBase, processor: ProcessorMixin | None, config: RunConfig
    ) -> Formatter | None:
        """Slot, often wrapped: a formatter for data with these columns, or None to leave it to the next plugin.

        Args:
            columns: the data's columns, name to feature type (`datasets.Features`).
            tokenizer: the run's tokenizer, with its chat template.
            processor: the processor that ``load_tokenizer`` returned, if it returned one.
        """

    @hookspec(firstresult=True)
    def make_tokenizing(self, tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> TokenizingEngine | None:
        """Slot: an engine that tokenizes faster than `tokenizers`. It is used if it is proved to be equal.

        Args:
            tokenizer: the run's tokenizer.
        """

    @hookspec(firstresult=True)
    def make_collator(
        self, tokenizer: PreTrainedTokenizerBase, processor: ProcessorMixin | None, config: RunConfig
    ) -> Collator | None:
        """Slot, often wrapped: a callable that makes a batch of tensors from a list of examples.

        Args:
            tokenizer: the run's tokenizer.
            processor: the processor that ``load_tokenizer`` returned, if it returned one.
        """

    @hookspec
    def check_prepared(self, run: PreparedRun) -> Iterable[Verdict]:
        """Broadcast: verdicts on the prepared data and on what the run will take, before weights are loaded.

        ``sftkit check`` shows them all; ``sftkit run`` stops if one is ``wrong``.

        Args:
            run: tokenizer, data, collator and plugins of the run.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def load_model(self, config: RunConfig, options: Mapping[str, Any]) -> PreTrainedModel | None:
        """Slot: load the model.

        Args:
            options: ``config.model.options`` and every plugin's ``model_options``, merged.
        """

    @hookspec(firstresult=True)
    def attach_adapter(self, model: PreTrainedModel, config: RunConfig) -> Any | None:
        """Slot: put the adapter of the directory ``config.model.name`` on its base model, to train it further.

        `sftkit check` calls it too, with a base model without weights (on the meta device).

        Args:
            model: the adapter's base model, as ``load_model`` returned it.

        Returns:
            The model with the adapter, trainable.
        """

    @hookspec(firstresult=True)
    def resize_embeddings(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new_token_ids: list[int]
    ) -> bool | None:
        """Slot: give every token of the tokenizer a row in the model's embeddings. Changes the model.

        Args:
            model: the model as loaded.
            tokenizer: the run's tokenizer.
            new_token_ids: ids of the tokens that ``add_tokens`` added.

        Returns:
            True when done.
        """

    @hookspec
    def patch_kernels(self, model: PreTrainedModel, config: RunConfig) -> None:
        """Broadcast: replace forwards by faster ones. Changes the model, never its parameters.

        Args:
            model: the model as loaded, before any adapter.
        """

    @hookspec(firstresult=True)
    def prepare_base(self, model: PreTrainedModel, config: RunConfig) -> bool | None:
        """Slot: make a base model ready for an adapter, as quantized ones need. Changes the model.

        Args:
            model: the model, patched.

        Returns:
            True when done, None for a model that needs nothing from this plugin.
        """

    @hookspec(firstresult=True)
    def adapt_model(self, model: Any, config: RunConfig, new_token_ids: list[int], choices: Choices) -> Any | None:
        """Slot: the model to train, as with PEFT adapters on it. Without a plugin here every weight is trained.

        Args:
            model: the model, patched and prepared.
            new_token_ids: ids of the tokens that ``add_tokens`` added; their embeddings must be trained and saved.
            choices: keeps what is chosen from the weights, so that a resumed run chooses the same.
        """

    @hookspec(firstresult=True)
    def make_loss(self, model: Any, config: RunConfig) -> HeadLoss | None:
        """Slot: what is minimised; None leaves it to the next plugin. Without one, negative log-likelihood.

        Args:
            model: the model to train; one without weights (on the meta device) when `sftkit check` estimates memory.
        """

    @hookspec
    def trainer_callbacks(self, config: RunConfig) -> Iterable[TrainerCallback]:
        """Broadcast: callbacks for the Trainer."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def reduce_activations(
        self, model: Any, config: RunConfig, batch: Mapping[str, Any], plugins: PluginSet
    ) -> AbstractContextManager[Any] | None:
        """Slot: a context manager held during training that keeps fewer activations for the backward pass.

        `sftkit check` enters it too, around an estimate of the memory of a model without weights (on the meta device).

        Args:
            model: the model to train, on its device.
            batch: the largest batch there is, as the collator makes it.
            plugins: the selected plugins, of which one may make the optimizer; `estimate_memory` takes them.
        """

    @hookspec
    def inject_noise(self, model: Any) -> AbstractContextManager[Any]:
        """Broadcast: a context manager held during training; its exit restores the model exactly.

        Args:
            model: the model to train.
        """
        raise NotImplementedError

    @hookspec
    def training_context(
        self, model: Any, config: RunConfig, rows: Dataset | Stream | None, collator: Collator | None
    ) -> AbstractContextManager[Any]:
        """Broadcast: a context manager around the training loop. One plugin's may yield a `BatchChoice`.

        Args:
            model: the model to train, on its device.
            rows: the training rows; None where a trainer of another library has no prepared ones.
            collator: makes a batch of some rows, as plugins before it chose; None together with ``rows``.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def make_optimizer(self, model: Any, config: RunConfig) -> Optimizer | None:
        """Slot: what updates the weights; None leaves it to ``train.optim``. A schedule scales each group's own ``lr``.

        Checks and estimates of memory call it too, with a model without weights (on the meta device).

        Args:
            model: the model to train, on its device, and sharded if an engine shards it.

        Returns:
            An optimizer in which each weight with ``requires_grad`` is once, and no other. An entry ``name`` of a group
            is its name in the log. If it has methods ``eval`` and ``train``, they are called as weights are evaluated
            or saved, and before they are trained.
        """

    @hookspec
    def export_model(self, model: Any, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
        """Broadcast: write a further artefact after training (merged weights, a quantized model).

        Args:
            model: the trained model.
            tokenizer: the run's tokenizer.
            directory: the run directory; write into a new folder inside it.
        """

    @hookspec(firstresult=True)
    def merge_adapter(self, model: Any, config: RunConfig) -> PreTrainedModel | None:
        """Slot: the model without its adapter, with weights that compute the same. Changes the model.

        Args:
            model: the unquantized base in float32, with the adapter that ``attach_adapter`` put on it.
            config: how the model was loaded; ``config.model.name`` is the directory of the adapter.
        """

    @hookspec(firstresult=True)
    def quantize_model(
        self, source: Path, target: Path, rows: Sequence[Sequence[int]], probes: Sequence[Sequence[int]]
    ) -> Sequence[Tensor] | None:
        """Slot: quantize a saved model. Only the plugin of ``sftkit export --quantize`` is called.

        Args:
            source: the directory of the model, without an adapter, and of its tokenizer.
            target: an empty directory for the quantized model; the tokenizer is copied into it afterwards.
            rows: token ids of documents to calibrate on, in the order in which to use them.
            probes: token ids of documents, for each of which it returns the logits of the written model, read back.
        """
