"""`SFTTrainer`: TRL 0.11's trainer for supervised fine-tuning, on top of sftkit's stages and plugins.

Signature, defaults, attributes and errors are those of TRL 0.11; the plugins do the work. `docs/from-trl.md` lists
where sftkit differs.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import datasets
import transformers
from huggingface_hub import ModelCard, ModelCardData
from transformers import TrainingArguments

from sftkit.api import IGNORE_INDEX, LOSS_WEIGHTS, TokenLossTrainer, warn_caller
from sftkit_plugins.completion_only.collator import DataCollatorForCompletionOnlyLM
from sftkit_trl.build import Built, build, prepare_alone, stages_without_packing
from sftkit_trl.callbacks import RichProgressCallback
from sftkit_trl.collators import JoinedDocuments, PlainRows, WithRowLengths
from sftkit_trl.data import PreparedSets, is_packed
from sftkit_trl.errors import as_value_error
from sftkit_trl.isolation import Isolation, cache_setting
from sftkit_trl.script import Script, changed
from sftkit_trl.signatures import accept_added_arguments, call_preparation


class SFTTrainer(TokenLossTrainer):
    """TRL 0.11's trainer for supervised fine-tuning; a `transformers.Trainer`.

    Args:
        model: the model, or its directory or hub name; a loaded model is trained itself, not a copy.
        args: an `SFTConfig`; for a plain `TrainingArguments`, the other fields have their defaults.
        data_collator: makes batches with ``labels`` from ``input_ids`` and ``attention_mask``; by default every token
            of a text is trained.
        train_dataset: rows of text, of conversations, or of prompt and completion; or rows of token ids, which are
            used unchanged.
        eval_dataset: the same, or a dict of several.
        tokenizer: by default the model's.
        model_init: makes the model, instead of ``model``.
        compute_metrics: as in `transformers.Trainer`, as are ``callbacks``, ``optimizers`` and
            ``preprocess_logits_for_metrics``.
        peft_config: the adapter to train.
        formatting_func: returns a list of texts for a batch of rows; with packing, one text for one row.
        infinite: no effect; a warning.
        processing_class: another name for ``tokenizer``.

    The other arguments have moved to `SFTConfig`; passed here, they override it and warn.

    Raises:
        ValueError: if arguments contradict each other, or the data cannot be trained on.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "sft"]
    _ignores_number_of_items = False  # whether a subclass computes a batch's mean loss
    _signature_columns: Any
    model: Any

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        tokenizer: Any = None,
        model_init: Callable[..., Any] | None = None,
        compute_metrics: Callable[[Any], dict] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: Callable[..., Any] | None = None,
        peft_config: Any = None,
        dataset_text_field: str | None = None,
        packing: bool | None = None,
        formatting_func: Callable[[Any], Any] | None = None,
        max_seq_length: int | None = None,
        infinite: bool | None = None,
        num_of_sequences: int | None = None,
        chars_per_token: float | None = None,
        dataset_num_proc: int | None = None,
        dataset_batch_size: int | None = None,
        neftune_noise_alpha: float | None = None,
        model_init_kwargs: dict | None = None,
        dataset_kwargs: dict | None = None,
        eval_packing: bool | None = None,
        processing_class: Any = None,
    ) -> None:
        arguments = locals()
        with as_value_error():
            script = Script.of(arguments)
            self._take(script)
            built = build(script, self._prepared, self._own_preparation(script))
            super().__init__(**built.arguments)
            self._finish(script, built)

    def _take(self, script: Script) -> None:
        """What ``_prepare_dataset`` of a subclass reads before the trainer is complete."""
        self._prepared = PreparedSets()
        self.args, self.processing_class, self.data_collator = script.args, script.processor, script.data_collator
        self.model = None if isinstance(script.model, str) else script.model
        self.train_dataset, self.eval_dataset = script.train_dataset, script.eval_dataset
        self.dataset_num_proc, self.dataset_batch_size = script.args.dataset_num_proc, script.args.dataset_batch_size

    def _own_preparation(self, script: Script) -> Callable[[Any, bool], Any] | None:
        """A subclass's preparation of one data set; None if the subclass has none."""
        if type(self)._prepare_dataset is SFTTrainer._prepare_dataset:
            return None
        args = script.args

        def prepare(rows: Any, packing: bool) -> Any:
            arguments = {
                "tokenizer": script.tokenizer,
                "packing": packing,
                "dataset_text_field": args.dataset_text_field,
                "max_seq_length": args.max_seq_length,
                "formatting_func": script.formatting_func,
                "num_of_sequences": args.num_of_sequences,
                "chars_per_token": args.chars_per_token,
            }
            options = {"remove_unused_columns": args.remove_unused_columns, **(args.dataset_kwargs or {})}
            return call_preparation(self._prepare_dataset, rows, arguments, options)

        return prepare

    def _prepare_dataset(
        self,
        dataset: Any,
        tokenizer: Any,
        packing: bool,
        dataset_text_field: str | None,
        max_seq_length: int | None,
        formatting_func: Callable[[Any], Any] | None,
        num_of_sequences: int,
        chars_per_token: float,
        remove_unused_columns: bool = True,
        **dataset_kwargs: Any,
    ) -> Any:
        """One data set, prepared by itself; a subclass that overrides this is called for each data set."""
        args = changed(
            self.args,
            packing=packing,
            dataset_text_field=dataset_text_field,
            max_seq_length=max_seq_length,
            remove_unused_columns=remove_unused_columns,
            dataset_kwargs=dataset_kwargs,
        )
        return prepare_alone(dataset, args, formatting_func, tokenizer, self._prepared)

    def _finish(self, script: Script, built: Built) -> None:
        """What the constructor of `transformers.Trainer` leaves open, or changes although TRL's scripts rely on it."""
        self._stages, self._use_cache = built.stages, built.use_cache
        self._has_own_collator = script.data_collator is not None
        self.neftune_noise_alpha = None  # the plugin adds the noise
        if getattr(self.model, "config", None) is not None:
            self.model.config.use_cache = built.use_cache
        if hasattr(self.model, "add_model_tags"):
            self.model.add_model_tags(self._tag_names)
        if self._ignores_number_of_items:
            # The loss is the mean of a batch, so the Trainer must divide it by the accumulated batches.
            self.loss_is_scaled_for_ga = self.model_accepts_loss_kwargs = False
        handler: Any = self.callback_handler
        handler.call_event = functools.partial(handler.call_event, tokenizer=self.processing_class)
        if any(isinstance(callback, RichProgressCallback) for callback in handler.callbacks):
            for other in (transformers.PrinterCallback, transformers.ProgressCallback):
                self.remove_callback(other)
        if self.args.packing and self.train_dataset is not None:
            self._repeat_packed_data()
        self._isolation = self._decide_isolation()
        if self._isolation.joined:
            self._stages = stages_without_packing(script)
            if not self._has_own_collator:
                self.data_collator = JoinedDocuments(self.data_collator)

    def _repeat_packed_data(self) -> None:
        """With ``max_steps``, packed data is repeated; a ConstantLengthDataset of the script's is copied for that."""
        repeats = self.args.max_steps > 0
        if repeats:
            warn_caller(
                "You passed `packing=True` to the SFTTrainer/SFTConfig, and `max_steps` as well: the data is repeated "
                "until `max_steps` are reached, which may take several epochs."
            )
        if hasattr(self.train_dataset, "infinite"):
            self.train_dataset = copy.copy(self.train_dataset)
            self.train_dataset.infinite = repeats

    def _decide_isolation(self) -> Isolation:
        """How documents of one row are kept apart, tried on the model, which is on its device by now."""
        args, train = self.args, self.train_dataset
        streamed = args.packing and train in self._prepared and not hasattr(train, "column_names")
        rows = 1 if getattr(self.data_collator, "padding_free", False) else 0
        if streamed or any(is_packed(each) for each in self._prepared):
            rows = max(args.per_device_train_batch_size, args.per_device_eval_batch_size)
        return Isolation.of(self.model, streamed or is_packed(train), rows, self._stages.config)

    def __init_subclass__(cls, **options: Any) -> None:
        """Methods of a subclass may lack arguments that transformers has added since 2024."""
        super().__init_subclass__(**options)
        cls._ignores_number_of_items = accept_added_arguments(cls) or cls._ignores_number_of_items

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, or the processor that was passed as one."""
        return self.processing_class

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self.processing_class = tokenizer

    def train(self, *arguments: Any, **options: Any) -> Any:
        """Train, as `transformers.Trainer` does.

        Raises:
            ValueError: if a `DataCollatorForCompletionOnlyLM` leaves nothing to train on.
        """
        with as_value_error():
            self._check_templates()
            return super().train(*arguments, **options)

    def evaluate(self, *arguments: Any, **options: Any) -> Any:
        """Evaluate, as `transformers.Trainer` does."""
        with self._documents_as_decided():
            return super().evaluate(*arguments, **options)

    def predict(self, *arguments: Any, **options: Any) -> Any:
        """Predict, as `transformers.Trainer` does."""
        with self._documents_as_decided():
            return super().predict(*arguments, **options)

    def _inner_training_loop(self, *arguments: Any, **options: Any) -> Any:
        with self._asked_for_losses(), self._documents_as_decided(), self._stages.training(self.model):
            return super()._inner_training_loop(*arguments, **options)

    def _prepare_for_training(self, max_steps: int, *arguments: Any, **options: Any) -> Any:
        """As in `transformers.Trainer`, which no longer calls a method that subclasses of 2024 override."""
        if type(self).create_optimizer_and_scheduler is not SFTTrainer.create_optimizer_and_scheduler:
            self.create_optimizer_and_scheduler(num_training_steps=max_steps)
            self._created_lr_scheduler = False  # otherwise it would be replaced by the default one
        return super()._prepare_for_training(max_steps, *arguments, **options)

    @contextlib.contextmanager
    def _documents_as_decided(self) -> Iterator[None]:
        with (
            cache_setting(self.model, self.args.use_cache),
            self._isolation.applied(self.model, self._stages.config),
        ):
            yield

    def _check_templates(self) -> None:
        """Stop before the first step if the completion-only collator finds its templates in no row."""
        rows = self.train_dataset
        only_completions = isinstance(self.data_collator, DataCollatorForCompletionOnlyLM)
        if not only_completions or not isinstance(rows, datasets.Dataset):
            return
        collator = self._batch_collator(rows)
        if any((collator([row])["labels"] != IGNORE_INDEX).any() for row in rows):
            return
        raise ValueError(
            f"nothing would be trained: the templates were found in none of the {len(rows)} rows. Pass the token ids "
            "that the templates have in context, raise max_seq_length, or use sftkit's plugin completion_only, which "
            "searches the text."
        )

    def _batch_collator(self, dataset: Any) -> Any:
        """The collator of a data set: a script's own gets prepared rows as TRL had them.

        Batches hold the model's inputs and nothing else, because scripts pass them to the model themselves. Only a
        batch without padding says how many examples it has, for the evaluation.
        """
        collator = self.data_collator
        if self._has_own_collator and dataset in self._prepared:
            collator = PlainRows(collator)
            collator = JoinedDocuments(collator) if self._isolation.joined else collator
        padding_free = getattr(self.data_collator, "padding_free", False)
        return WithRowLengths(collator) if padding_free and not self._own_loss else collator

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*self._signature_columns, LOSS_WEIGHTS, "position_ids"]

    def _activate_neftune(self, model: Any) -> Any:
        """Add NEFTune's noise to the model in training mode, until ``neftune_hook_handle.remove()``."""
        self.neftune_hook_handle = _Held()
        for _, context in self._stages.plugins.hook.inject_noise(model=model):
            self.neftune_hook_handle.enter_context(context)
        return model

    _trl_activate_neftune = _activate_neftune

    def create_model_card(self, *arguments: Any, tags: str | list[str] | None = None, **options: Any) -> None:
        """Write the model card, with the trainer's own tags after those passed."""
        passed = [tags] if isinstance(tags, str) else list(tags or [])
        tags = [*passed, *(tag for tag in self._tag_names if tag not in passed)]
        super().create_model_card(*arguments, tags=tags, **options)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with cache_setting(self.model, self._use_cache or self.args.use_cache):
            super()._save(output_dir, state_dict)
        card = Path(output_dir or self.args.output_dir, "README.md")
        if self.args.should_save and not card.exists():
            data = ModelCardData(library_name="transformers", tags=list(self._tag_names))
            ModelCard(f"---\n{data.to_yaml()}\n---\n\nTrained with sftkit.\n").save(card)


class _Held(contextlib.ExitStack):
    """Contexts that are left by ``remove``, as the handle of a hook is."""

    remove = contextlib.ExitStack.close
