"""The supervised fine-tuning API of TRL 0.11, on top of `Pipeline`'s stages and the plugins.

An old script runs with its import line changed: ``from sftkit.trl import SFTConfig, SFTTrainer``. Signatures, defaults,
attributes and errors are those of TRL 0.11; what they do is done by the plugins. `docs/from-trl.md` shows the same runs
as configuration files and as `Pipeline` calls, and where sftkit does otherwise than TRL did.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import datasets
import torch
import transformers
from accelerate import PartialState
from huggingface_hub import ModelCard, ModelCardData
from transformers import TrainingArguments

from sftkit.console import Display
from sftkit.data.columns import IGNORE, WEIGHTS
from sftkit.errors import ConfigError, SftkitError
from sftkit.models import autocast_type
from sftkit.pipeline import Pipeline
from sftkit.stages import Vocabulary
from sftkit.training import trainer as training
from sftkit.training.arguments import one_device
from sftkit.training.progress import Progress
from sftkit.trl_arguments import (
    MOVED,
    ModelConfig,
    SFTConfig,
    SFTScriptArguments,
    SftScriptArguments,
    TrlParser,
    check_dataset_kwargs,
    get_kbit_device_map,
    get_peft_config,
    get_quantization_config,
    model_section,
    set_length,
    sft_config,
    train_section,
)
from sftkit.trl_rows import PlainRows, Rows, WithRowLengths, get_formatting_func_from_dataset
from sftkit_plugins.chatml.chat_format import FORMAT_MAPPING, ChatMlSpecialTokens, setup_chat_format
from sftkit_plugins.completion_only.collator import DataCollatorForCompletionOnlyLM
from sftkit_plugins.flash_attn import FlashAttn
from sftkit_plugins.liger import Liger
from sftkit_plugins.loss import Loss
from sftkit_plugins.neftune import NEFTune
from sftkit_plugins.packing import Packing
from sftkit_plugins.packing.isolation import isolated
from sftkit_plugins.packing.stream import ConstantLengthDataset
from sftkit_plugins.peft import PEFT

__all__ = [
    "FORMAT_MAPPING",
    "ChatMlSpecialTokens",
    "ConstantLengthDataset",
    "DataCollatorForCompletionOnlyLM",
    "ModelConfig",
    "RichProgressCallback",
    "SFTConfig",
    "SFTScriptArguments",
    "SFTTrainer",
    "SftScriptArguments",
    "TrlParser",
    "get_formatting_func_from_dataset",
    "get_kbit_device_map",
    "get_peft_config",
    "get_quantization_config",
    "init_zero_verbose",
    "setup_chat_format",
]

logger = logging.getLogger("sftkit")


class SFTTrainer(training.SFTTrainer):
    """TRL 0.11's trainer for supervised fine-tuning; a `transformers.Trainer`.

    Args:
        model: the model, or its directory or hub name; a loaded model is trained itself, not a copy.
        args: an `SFTConfig`; of a plain `TrainingArguments` the rest are defaults.
        data_collator: makes batches from ``input_ids`` and ``attention_mask``, with ``labels``; by default every token
            of the text is trained.
        train_dataset: rows of text, conversations, or prompt and completion; or token ids, which are left as they are.
        eval_dataset: the same, or a dict of several.
        tokenizer: by default the model's.
        peft_config: the adapter to train.
        formatting_func: makes a list of texts from a batch of rows; with packing, a text from one row.
        processing_class: another name for ``tokenizer``.

    The other arguments are those of `transformers.Trainer`, and those that moved to `SFTConfig`, which warn.

    Raises:
        ValueError: for arguments that contradict each other, and for data that cannot be trained on.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "sft"]
    _takes_less = False
    _are_apart = False
    _signature_columns: Any

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
        given = locals()
        if infinite is not None:
            warnings.warn("The `infinite` argument is deprecated: set max_steps or num_train_epochs.", stacklevel=2)
        args = sft_config(args, {name: given[name] for name in MOVED if given[name] is not None})
        _check(args, model, data_collator, peft_config)
        _tell(args, model, peft_config)
        with _as_value_error():
            tokenizer = processing_class if processing_class is not None else tokenizer
            if tokenizer is None:
                tokenizer = _tokenizer_of(model, args)
            own_preparation = type(self)._prepare_dataset is not SFTTrainer._prepare_dataset
            if not own_preparation:
                check_dataset_kwargs(args)
            text_tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
            _check_tokenizer(text_tokenizer)
            set_length(args, text_tokenizer)
            self._arguments, self._prepared = args, list[Any]()
            with PartialState().local_main_process_first():
                if own_preparation:
                    train_dataset = self._prepare_by_subclass(train_dataset, text_tokenizer, args, formatting_func)
                    eval_dataset = self._prepare_by_subclass(eval_dataset, text_tokenizer, args, formatting_func)
                    args.dataset_kwargs = {"skip_prepare_dataset": True}
                sets = Rows.of(train_dataset, eval_dataset, formatting_func, text_tokenizer, args)
            packs = args.packing and bool(sets.to_prepare or self._prepared)
            adapter = None if _is_of_peft(model, "PeftModel") else peft_config
            plugins = _plugins(args, text_tokenizer, packs, adapter)
            self._stages = _stages(model or model_init, args, sets, plugins, text_tokenizer, data_collator)
            self._vocabulary = Vocabulary(text_tokenizer, [], changed=False)
            train_dataset, eval_dataset = sets.prepared(self._stages, text_tokenizer, args)
            if model is not None:
                model = self._with_plugins(None if isinstance(model, str) else model)
            named = sets.named(train_dataset, eval_dataset)
            self._prepared += [rows for name, rows in named if name in sets.to_prepare]
            self._has_own_collator = data_collator is not None
            own_loss = model is not None and _has_own_loss(model)
            if own_loss and args.label_smoothing_factor:
                raise ValueError(
                    "label_smoothing_factor: the model's class has a loss of its own, which does not smooth"
                )
            self._use_cache = getattr(getattr(model, "config", None), "use_cache", args.use_cache)
            super().__init__(
                loss=None if own_loss else self._stages.make_loss(model),
                model=model,
                args=_for_trainer(args, eval_dataset),
                data_collator=self._stages.make_collator(text_tokenizer),
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=tokenizer,
                model_init=model_init,
                compute_metrics=compute_metrics,
                callbacks=[*self._stages.callbacks(), *(callbacks or [])],
                optimizers=optimizers,
                preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            )
        if getattr(self.model, "config", None) is not None:
            self.model.config.use_cache = self._use_cache  # the Trainer has changed it
        self.dataset_num_proc, self.dataset_batch_size = args.dataset_num_proc, args.dataset_batch_size
        self._arrange()

    def _arrange(self) -> None:
        """What is another trainer's than transformers 5 makes it."""
        self.neftune_noise_alpha = None  # the plugin does it
        if self._takes_less:
            # The loss is a batch's mean, which knows nothing of the window.
            self.loss_is_scaled_for_ga = self.model_accepts_loss_kwargs = False
        handler: Any = self.callback_handler
        handler.call_event = functools.partial(handler.call_event, tokenizer=self.processing_class)
        if any(isinstance(callback, RichProgressCallback) for callback in handler.callbacks):
            for other in (transformers.PrinterCallback, transformers.ProgressCallback):
                self.remove_callback(other)
        if hasattr(self.model, "add_model_tags"):
            self.model.add_model_tags(self._tag_names)
        if not self.args.packing or self.train_dataset is None:
            return
        if self.args.max_steps > 0:
            warnings.warn(
                "You passed `packing=True` to the SFTTrainer/SFTConfig, and `max_steps` as well: the data is gone "
                "through again and again until `max_steps` are reached, which may be several epochs.",
                stacklevel=3,
            )
        rows: Any = self.train_dataset  # scripts look at its `infinite`, and `ConstantLengthDataset` goes by it
        if isinstance(rows, torch.utils.data.Dataset | datasets.Dataset):
            rows.infinite = self.args.max_steps > 0  # type: ignore[union-attr]

    def _prepare_by_subclass(self, given: Any, tokenizer: Any, args: SFTConfig, function: Any) -> Any:
        if isinstance(given, dict):
            return {name: self._prepare_by_subclass(rows, tokenizer, args, function) for name, rows in given.items()}
        if given is None:
            return None
        return self._prepare_dataset(
            given,
            tokenizer,
            args.packing,
            args.dataset_text_field,
            args.max_seq_length,
            function,
            args.num_of_sequences,
            args.chars_per_token,
            remove_unused_columns=args.remove_unused_columns,
            **(args.dataset_kwargs or {}),
        )

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
        """One data set, prepared by itself; a subclass may prepare it otherwise, and is asked for each."""
        args = copy.copy(self._arguments)  # a new one would set up the processes anew
        args.packing, args.dataset_text_field, args.max_seq_length = packing, dataset_text_field, max_seq_length
        args.remove_unused_columns, args.dataset_kwargs = remove_unused_columns, dataset_kwargs
        sets = Rows.of(dataset, None, formatting_func, tokenizer, args)
        stages = _stages(self, args, sets, _plugins(args, tokenizer, packing, None), tokenizer, None)
        made, _ = sets.prepared(stages, tokenizer, args)
        self._prepared += [made] if sets.to_prepare else []
        return made

    def __init_subclass__(cls, **options: Any) -> None:
        """Methods of a subclass may lack arguments that transformers has passed only since 2024."""
        super().__init_subclass__(**options)
        for name, added in ADDED.items():
            taken = _taking_less(getattr(cls, name), added)
            if taken is not getattr(cls, name):
                setattr(cls, name, taken)
        losses = [getattr(cls, name) for name in ("compute_loss", "training_step")]
        cls._takes_less = cls._takes_less or any(getattr(method, "takes_less", False) for method in losses)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, or the processor that was given in its place."""
        return self.processing_class

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self.processing_class = tokenizer

    def _with_plugins(self, model: Any) -> Any:
        """The model as plugins load, or change, it; what is no model of transformers is left as it is."""
        if model is None or hasattr(model, "get_input_embeddings"):
            return self._stages.load_model(self._vocabulary, model)
        return model

    def call_model_init(self, trial: Any = None) -> Any:
        """As the Trainer's; the model gets what the plugins do to one."""
        return self._with_plugins(super().call_model_init(trial))

    def train(self, *arguments: Any, **options: Any) -> Any:
        """As the Trainer's.

        Raises:
            ValueError: if a `DataCollatorForCompletionOnlyLM` leaves nothing to train on.
        """
        with _as_value_error():
            self._see_that_something_is_trained()
            return super().train(*arguments, **options)

    def evaluate(self, *arguments: Any, **options: Any) -> Any:
        """As the Trainer's."""
        with self._documents_apart():
            return super().evaluate(*arguments, **options)

    def predict(self, *arguments: Any, **options: Any) -> Any:
        """As the Trainer's."""
        with self._documents_apart():
            return super().predict(*arguments, **options)

    def _inner_training_loop(self, *arguments: Any, **options: Any) -> Any:
        with self._asked_for_losses(), self._documents_apart(), self._stages.training(self.model):
            return super()._inner_training_loop(*arguments, **options)

    @contextlib.contextmanager
    def _documents_apart(self) -> Iterator[None]:
        """Keeps documents of one row apart; where a model cannot, they see each other as in TRL, and that is told."""
        packed = any("position_ids" in _column_names(rows) for rows in self._prepared)
        sizes = (self.args.per_device_train_batch_size, self.args.per_device_eval_batch_size) if packed else (1,)
        asked = packed or getattr(self.data_collator, "padding_free", False)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._cache_setting(self.args.use_cache))
            if self._are_apart or not asked or not hasattr(self.model, "get_input_embeddings"):
                yield
                return
            self._are_apart = True
            stack.callback(setattr, self, "_are_apart", False)
            stack.enter_context(self._flash_alone())
            try:
                stack.enter_context(isolated(self.model, max(sizes), autocast_type(vars(self.args))))
            except ConfigError as leak:
                warnings.warn(f"{leak}. As in TRL, the documents of a packed row see each other.", stacklevel=4)
                self._join_documents()
            yield

    def _join_documents(self) -> None:
        plugins = self._stages.plugins
        packing = next((item.plugin for item in plugins.selected if item.name == "packing"), None)
        if packing is not None and plugins.manager.is_registered(packing):
            plugins.manager.unregister(packing)
        self.train_dataset = self._joined(self.train_dataset)
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {name: self._joined(rows) for name, rows in self.eval_dataset.items()}
        else:
            self.eval_dataset = self._joined(self.eval_dataset)

    def _joined(self, rows: Any) -> Any:
        """Packed rows that no longer tell where their documents begin."""
        if "position_ids" not in _column_names(rows):
            return rows
        self._prepared = [each for each in self._prepared if each is not rows]
        self._prepared.append(rows.remove_columns("position_ids"))
        return self._prepared[-1]

    def _flash_alone(self) -> contextlib.AbstractContextManager[Any]:
        """Where scripts leave torch only its flash kernel, which takes no mask, it runs on each document by itself."""
        cuda = torch.backends.cuda
        others = cuda.math_sdp_enabled() or cuda.mem_efficient_sdp_enabled()
        packed = "position_ids" in _column_names(self.train_dataset)
        if others or not cuda.flash_sdp_enabled() or not packed:
            return contextlib.nullcontext()
        plugin = FlashAttn(implementation="sdpa_flash", padding_free=False)
        return plugin.training_context(model=self.model, config=self._stages.config)

    def _see_that_something_is_trained(self) -> None:
        rows = self.train_dataset
        if not isinstance(self.data_collator, DataCollatorForCompletionOnlyLM) or not isinstance(
            rows, datasets.Dataset
        ):
            return
        collator = self._batch_collator(rows)
        if any((collator([row])["labels"] != IGNORE).any() for row in rows):
            return
        raise ValueError(
            f"nothing would be trained: the templates were found in none of {len(rows)} rows. Give the token ids "
            "that they have in context, raise max_seq_length, or use sftkit's plugin completion_only, which finds text."
        )

    def _batch_collator(self, dataset: Any) -> Any:
        """One's own collator gets rows that were prepared here as TRL had them.

        Batches have nothing but what a model takes: scripts give it them by hand. Only where all rows of a batch are
        one, the evaluation has to know how many they are.
        """
        collator = self.data_collator
        if self._has_own_collator and any(dataset is rows for rows in self._prepared):
            collator = PlainRows(collator)
        padding_free = getattr(self.data_collator, "padding_free", False)
        return WithRowLengths(collator) if padding_free and not self._own_loss else collator

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*self._signature_columns, WEIGHTS, "position_ids"]

    def _activate_neftune(self, model: Any) -> Any:
        """The model with NEFTune's noise in training mode, until ``neftune_hook_handle.remove()``."""
        self.neftune_hook_handle = _Held()
        for context in self._stages.plugins.hook.inject_noise(model=model):
            self.neftune_hook_handle.enter_context(context)
        return model

    _trl_activate_neftune = _activate_neftune

    def create_model_card(self, *arguments: Any, tags: str | list[str] | None = None, **options: Any) -> None:
        """As the Trainer's, with the tags of this one."""
        given = [tags] if isinstance(tags, str) else list(tags or [])
        tags = [*given, *(tag for tag in self._tag_names if tag not in given)]
        super().create_model_card(*arguments, tags=tags, **options)

    @contextlib.contextmanager
    def _cache_setting(self, use_cache: bool) -> Iterator[None]:
        """The model's cache off, with which documents of a row would see each other, or as it was."""
        config = getattr(self.model, "config", None)
        if config is None:
            yield
            return
        before, config.use_cache = getattr(config, "use_cache", use_cache), use_cache
        try:
            yield
        finally:
            config.use_cache = before

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with self._cache_setting(self._use_cache or self.args.use_cache):
            super()._save(output_dir, state_dict)
        card = Path(output_dir or self.args.output_dir, "README.md")
        if self.args.should_save and not card.exists():
            data = ModelCardData(library_name="transformers", tags=list(self._tag_names))
            ModelCard(f"---\n{data.to_yaml()}\n---\n\nTrained with sftkit.\n").save(card)


#: Arguments that transformers passes to a trainer's methods since 2024, by method.
ADDED = {"compute_loss": "num_items_in_batch", "training_step": "num_items_in_batch", "log": "start_time"}


def _taking_less(method: Callable[..., Any], added: str) -> Callable[..., Any]:
    """The method, to be called with an argument that it does not take."""
    parameters = inspect.signature(method).parameters
    if added in parameters or any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        return method
    by_place = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]

    @functools.wraps(method)
    def called(*arguments: Any, **options: Any) -> Any:
        options.pop(added, None)
        return method(*arguments[: len(by_place)], **options)

    called.takes_less = True  # type: ignore[attr-defined]
    return called


class _Held(contextlib.ExitStack):
    """Contexts that stay entered until ``remove``, as the handle of a hook."""

    remove = contextlib.ExitStack.close


@contextlib.contextmanager
def _as_value_error() -> Iterator[None]:
    try:
        yield
    except SftkitError as error:
        raise ValueError(str(error)) from error


def _check_tokenizer(tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer (one with a tokenizer.json): load that")
    if tokenizer.truncation_side == "left":
        raise ValueError("truncation_side='left': texts keep their beginning; set 'right', or cut them yourself")


def _is_of_peft(value: Any, name: str) -> bool:
    if find_spec("peft") is None:
        return False
    import peft

    return isinstance(value, getattr(peft, name))


def _column_names(rows: Any) -> list[str]:
    return getattr(rows, "column_names", None) or []


def _has_own_loss(model: Any) -> bool:
    """Whether a model's loss is its own business: one of the user's classes, or with an encoder before its decoder."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own_class = not type(base).__module__.startswith(("transformers.", "peft.", "unsloth"))
    return own_class or getattr(base.config, "is_encoder_decoder", False)


def _for_trainer(args: SFTConfig, eval_dataset: Any) -> SFTConfig:
    """The arguments, of one GPU a process; without an evaluation set there are no evaluations. Changes them."""
    if eval_dataset is None and args.eval_strategy != "no":
        warnings.warn("there is no `eval_dataset`, so that nothing is evaluated (`eval_strategy`)", stacklevel=4)
        args.eval_strategy = transformers.IntervalStrategy.NO
    one_device(args)
    return args


def _check(args: SFTConfig, model: Any, collator: Any, peft_config: Any) -> None:
    if args.model_init_kwargs is not None and not isinstance(model, str):
        raise ValueError("You passed model_init_kwargs to the SFTConfig, but your model is already instantiated.")
    if args.packing and isinstance(collator, DataCollatorForCompletionOnlyLM):
        raise ValueError(
            "You passed a `DataCollatorForCompletionOnlyLM` to the SFTTrainer. This is not compatible with the "
            "`packing` argument."
        )
    if peft_config is not None and not _is_of_peft(peft_config, "PeftConfig"):
        raise ValueError(
            "If you want to use the PeftModel, you need to pass a PeftConfig object to the SFTTrainer, and you passed "
            f"a {type(peft_config)}."
        )
    if args.eval_packing and not args.packing:
        raise ValueError("eval_packing=True packs evaluation sets only where packing=True packs the training data")


def _tell(args: SFTConfig, model: Any, peft_config: Any) -> None:
    if isinstance(model, str):
        what = "You passed a model_id to the SFTTrainer. This will automatically create an `AutoModelForCausalLM` or a "
        warnings.warn(f"{what}`PeftModel` (if you passed a `peft_config`) for you.", stacklevel=3)
    if _is_of_peft(model, "PeftModel") and peft_config is not None:
        warnings.warn("The model is a PeftModel already: its adapter is trained, not `peft_config`.", stacklevel=3)


def _tokenizer_of(model: Any, args: SFTConfig) -> Any:
    if model is None:
        raise ValueError("`model_init` says nothing of the tokenizer: pass it as `tokenizer`")
    section = model_section(model if isinstance(model, str) else model.config._name_or_path, args)
    tokenizer = Pipeline(model=section, data=[]).stages().load_tokenizer().tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _plugins(args: SFTConfig, tokenizer: Any, packs: bool, peft_config: Any) -> list[Any]:
    chosen: list[Any] = []
    if packs:
        appended = (args.dataset_kwargs or {}).get("append_concat_token", True)
        chosen.append(
            Packing(
                strategy="wrapped",
                concat_token_id=tokenizer.eos_token_id if appended else None,
                keep_short=False,
                eval="wrapped" if args.eval_packing is not False else False,
            )
        )
    if peft_config is not None:
        chosen.append(PEFT(config=peft_config))
    if args.neftune_noise_alpha is not None:
        chosen.append(NEFTune(alpha=args.neftune_noise_alpha))
    if args.use_liger or args.use_liger_kernel:
        chosen.append(Liger(**(args.liger_kernel_config or {})))
        args.use_liger_kernel = False  # the Trainer would do it again, and leave it on
    if args.label_smoothing_factor:
        chosen.append(Loss(label_smoothing=args.label_smoothing_factor))
    return chosen


def _stages(model: Any, args: SFTConfig, rows: Rows, plugins: list[Any], tokenizer: Any, collator: Any) -> Any:
    """The run as sftkit sees it."""
    data: dict[str, Any] = {
        "loss": "all",
        "max_length": args.max_seq_length,
        "text_column": rows.text_column,
        "special_tokens": "tokenizer" if rows.add_special_tokens else "none",
        "streaming": isinstance(rows.train, datasets.IterableDataset),
        "shuffle_buffer": 0,
    }
    if (args.dataset_batch_size or 0) > 0 and not args.packing:
        data["window"] = args.dataset_batch_size
    pipeline = Pipeline(
        model=model_section(model, args),
        data=[] if rows.train is None else rows.train,
        eval=rows.eval or None,
        plugins=plugins,
        train=train_section(args),
        config={"data": data},
        tokenizer=tokenizer,
        collator=collator,
    )
    return pipeline.stages()


class RichProgressCallback(Progress):
    """Shows the progress of training as sftkit does."""

    def __init__(self) -> None:
        super().__init__(Display())


def init_zero_verbose() -> None:
    """Let nothing but errors be logged."""
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
