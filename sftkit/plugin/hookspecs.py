"""The contract between the core and its plugins: the hooks, in the order in which a run reaches them.

A *slot* (``firstresult``) is filled by one plugin: the defaults fill it last, and two selected plugins on one slot are
an error before anything is loaded. A *broadcast* calls every plugin, in the order in which they were named. An
implementation may take any subset of a hook's arguments. Hooks build things once: none is called inside a loop over
rows or steps, and what they return can be pickled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from datasets import Features
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback

    from sftkit.config import RunConfig
    from sftkit.data.counts import Counts
    from sftkit.data.documents import Formatter
    from sftkit.data.packs import Packer
    from sftkit.errors import Problem
    from sftkit.training.collate import Collator
    from sftkit.training.loss import HeadLoss

hookspec = pluggy.HookspecMarker("sftkit")


class Hooks:
    """Every hook of sftkit. ``docs/hooks.md`` has an example of each."""

    @hookspec
    def check_run(self, config: RunConfig) -> Iterable[Problem]:
        """Broadcast: what this plugin cannot do with this run, and the mend. Called before anything is read.

        Args:
            config: the run as resolved.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def load_tokenizer(self, config: RunConfig) -> PreTrainedTokenizerBase | ProcessorMixin | None:
        """Slot: load the tokenizer. It is loaded before the data is prepared, and the data before the weights.

        Args:
            config: the run as resolved; ``config.model`` says what to load.

        Returns:
            The tokenizer; or a processor, whose tokenizer it is then, and which is saved with the model.
        """

    @hookspec
    def add_tokens(self, tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> None:
        """Broadcast: set the chat template, add special tokens. Changes the tokenizer.

        The model's embeddings follow by themselves: see ``resize_embeddings``.

        Args:
            tokenizer: the run's tokenizer.
            config: the run as resolved.
        """

    @hookspec(firstresult=True)
    def make_formatter(
        self,
        columns: Features,
        tokenizer: PreTrainedTokenizerBase,
        processor: ProcessorMixin | None,
        config: RunConfig,
    ) -> Formatter | None:
        """Slot, and wrappers are welcome: a formatter for data with these columns, or None to leave it to the next.

        Args:
            columns: the data's columns, name to feature type (`datasets.Features`).
            tokenizer: the run's tokenizer, with its chat template.
            processor: what ``load_tokenizer`` gave, where that is more than a tokenizer.
            config: the run as resolved.
        """

    @hookspec(firstresult=True)
    def make_packer(self, split: str, config: RunConfig, counts: Counts) -> Packer | None:
        """Slot: what rearranges examples into rows of ``config.data.max_length``, or None to leave them single.

        Args:
            split: ``"train"``, or the name of an evaluation set.
            config: the run as resolved.
            counts: where to count what is done to the data.
        """

    @hookspec(firstresult=True)
    def make_collator(
        self, tokenizer: PreTrainedTokenizerBase, processor: ProcessorMixin | None, config: RunConfig
    ) -> Collator | None:
        """Slot, and wrappers are welcome: a callable that makes a batch of tensors from a list of examples.

        Args:
            tokenizer: the run's tokenizer.
            processor: what ``load_tokenizer`` gave, where that is more than a tokenizer.
            config: the run as resolved.
        """

    @hookspec
    def model_options(self, config: RunConfig) -> Mapping[str, Any]:
        """Broadcast, merged: keyword arguments for ``from_pretrained``. One key from two plugins is an error.

        Args:
            config: the run as resolved.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def load_model(self, config: RunConfig, options: Mapping[str, Any]) -> PreTrainedModel | None:
        """Slot: load the model.

        Args:
            config: the run as resolved; ``config.model`` says what to load.
            options: ``config.model.options`` and every plugin's ``model_options``, merged.
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
            config: the run as resolved.
        """

    @hookspec(firstresult=True)
    def adapt_model(self, model: PreTrainedModel, config: RunConfig, new_token_ids: list[int]) -> Any | None:
        """Slot: the model to train, as with PEFT adapters on it. Without a plugin here every weight is trained.

        Args:
            model: the model, patched; in few bits it is prepared (`sftkit.models.quantized.prepare_quantized`), unless the same
                plugin has loaded it.
            config: the run as resolved.
            new_token_ids: ids of the tokens that ``add_tokens`` added; their embeddings must be trained and saved.
        """

    @hookspec(firstresult=True)
    def make_loss(self, model: Any, config: RunConfig) -> HeadLoss | None:
        """Slot: what is minimised, or None to leave it to the next. Without a plugin here, negative log-likelihood.

        Args:
            model: the model to train.
            config: the run as resolved.
        """

    @hookspec(firstresult=True)
    def reduce_activations(
        self, model: Any, config: RunConfig, batch: Mapping[str, Any]
    ) -> AbstractContextManager[Any] | None:
        """Slot: a context manager held during training, in which less of the forward is kept for the backward.

        `sftkit check` enters it too, around an estimate of the memory of a model without weights (on the meta device).

        Args:
            model: the model to train, on its device.
            config: the run as resolved.
            batch: the largest batch there is, as the collator makes it.
        """

    @hookspec
    def inject_noise(self, model: Any) -> AbstractContextManager[Any]:
        """Broadcast: a context manager held during training; its exit restores the model exactly.

        Args:
            model: the model to train.
        """
        raise NotImplementedError

    @hookspec
    def training_context(self, model: Any, config: RunConfig) -> AbstractContextManager[Any]:
        """Broadcast: a context manager around the training loop.

        Args:
            model: the model to train, on its device.
            config: the run as resolved.
        """
        raise NotImplementedError

    @hookspec
    def trainer_callbacks(self, config: RunConfig) -> Iterable[TrainerCallback]:
        """Broadcast: callbacks for the Trainer.

        Args:
            config: the run as resolved.
        """
        raise NotImplementedError

    @hookspec
    def export_model(self, model: Any, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
        """Broadcast: write a further artefact after training (merged weights, a quantized model).

        Args:
            model: the trained model.
            tokenizer: the run's tokenizer.
            directory: the run directory; write into a folder of your own inside it.
        """
