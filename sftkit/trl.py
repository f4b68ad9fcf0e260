"""The supervised fine-tuning API of TRL 0.11, on top of `Pipeline`'s stages and the plugins.

An old script runs with its import line changed: ``from sftkit.trl import SFTConfig, SFTTrainer``. Signatures, defaults,
attributes and errors are those of TRL 0.11; what they do is done by the plugins. `docs/from-trl.md` shows the same runs
as configuration files and as `Pipeline` calls, and where sftkit does otherwise than TRL did.
"""

# Not `from __future__ import annotations`: HfArgumentParser reads the fields' types.

import contextlib
import dataclasses
import enum
import logging
import operator
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
import yaml
from accelerate import PartialState
from huggingface_hub import ModelCard, ModelCardData
from peft import LoraConfig, PeftConfig, PeftModel
from transformers import (
    BitsAndBytesConfig,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from sftkit.config.train_fields import allowed_fields
from sftkit.console import Display
from sftkit.data.columns import WEIGHTS
from sftkit.errors import SftkitError
from sftkit.pipeline import Pipeline
from sftkit.stages import Vocabulary
from sftkit.training import trainer as training
from sftkit.training.arguments import one_device
from sftkit.training.batches import WithPositions
from sftkit.training.progress import Progress
from sftkit_plugins.chatml.chat_format import FORMAT_MAPPING, ChatMlSpecialTokens, setup_chat_format
from sftkit_plugins.completion_only.collator import DataCollatorForCompletionOnlyLM
from sftkit_plugins.liger import Liger
from sftkit_plugins.loss import Loss
from sftkit_plugins.neftune import NEFTune
from sftkit_plugins.packing import Packing
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

#: Arguments of 2024's TrainingArguments that transformers 5 renamed.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "warmup_ratio": "warmup_steps",  # which takes a fraction below 1 as well
    "no_cuda": "use_cpu",
    "push_to_hub_token": "hub_token",
    "push_to_hub_model_id": "hub_model_id",
}
#: Arguments that asked for what is so by now, or that only scripts read.
WITHOUT_EFFECT = (
    *("overwrite_output_dir", "save_safetensors", "use_mps_device", "include_tokens_per_second"),
    *("half_precision_backend", "fp16_backend", "fp16_opt_level", "ray_scope"),
)


def _old(told: str) -> Any:
    return field(default=None, metadata={"help": f"Of 2024: {told}"})


@dataclass
class SFTConfig(TrainingArguments):
    """`transformers.TrainingArguments` with the fields of TRL 0.11's SFTConfig, and those of 2024's TrainingArguments.

    Raises:
        ValueError: for an old argument that asks for what there is no more.
    """

    dataset_text_field: str | None = field(default=None, metadata={"help": "Column that holds the text."})
    packing: bool = field(default=False, metadata={"help": "Pack several texts into each row."})
    max_seq_length: int | None = field(
        default=None, metadata={"help": "Tokens a row; min(tokenizer.model_max_length, 1024) by default."}
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Processes that run your formatting function; the rest is done in threads."}
    )
    dataset_batch_size: int = field(default=1000, metadata={"help": "Rows your formatting function gets at once."})
    model_init_kwargs: dict | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained for a model that is given by its name."}
    )
    dataset_kwargs: dict | None = field(
        default=None, metadata={"help": "add_special_tokens, append_concat_token, skip_prepare_dataset."}
    )
    eval_packing: bool | None = field(default=None, metadata={"help": "Pack evaluation sets; as packing if unset."})
    num_of_sequences: int = field(default=1024, metadata={"help": "Sequences in ConstantLengthDataset's buffer."})
    chars_per_token: float = field(default=3.6, metadata={"help": "Characters a token, to size that buffer."})
    use_liger: bool = field(default=False, metadata={"help": "Use the kernels of liger-kernel."})

    evaluation_strategy: str | None = _old("eval_strategy.")
    per_gpu_train_batch_size: int | None = _old("per_device_train_batch_size.")
    per_gpu_eval_batch_size: int | None = _old("per_device_eval_batch_size.")
    warmup_ratio: float | None = _old("warmup_steps, which takes a fraction as well.")
    no_cuda: bool | None = _old("use_cpu.")
    group_by_length: bool | None = _old("train_sampling_strategy=group_by_length.")
    include_inputs_for_metrics: bool | None = _old("include_for_metrics=['inputs'].")
    dispatch_batches: bool | None = _old("accelerator_config.")
    split_batches: bool | None = _old("accelerator_config.")
    torchdynamo: str | None = _old("torch_compile_backend.")
    adafactor: bool | None = _old("optim=adafactor.")
    logging_dir: str | None = _old("TENSORBOARD_LOGGING_DIR in the environment.")
    push_to_hub_token: str | None = _old("hub_token.")
    push_to_hub_model_id: str | None = _old("hub_model_id.")
    push_to_hub_organization: str | None = _old("the first part of hub_model_id.")
    overwrite_output_dir: bool | None = _old("read by scripts only.")
    save_safetensors: bool | None = _old("weights are always safetensors.")
    use_mps_device: bool | None = _old("an Apple GPU is used where there is one.")
    include_tokens_per_second: bool | None = _old("always told.")
    half_precision_backend: str | None = _old("torch's own.")
    fp16_backend: str | None = _old("torch's own.")
    fp16_opt_level: str | None = _old("of apex.")
    ray_scope: str | None = _old("of a hyperparameter search with ray.")

    def __post_init__(self) -> None:
        """Put what the old arguments ask for in the place of today."""
        if self.save_safetensors is False:
            raise ValueError("save_safetensors=False: pickles are not written; drop the argument")
        if "apex" in (self.half_precision_backend, self.fp16_backend):
            raise ValueError("apex is not used any more: drop half_precision_backend and set fp16=True or bf16=True")
        for old, new in RENAMED.items():
            if (value := getattr(self, old)) is not None:
                setattr(self, new, value)
        self._merge_old()
        super().__post_init__()

    def _merge_old(self) -> None:
        if self.group_by_length:
            self.train_sampling_strategy = "group_by_length"
        if self.include_inputs_for_metrics:
            self.include_for_metrics: list[str] = [*(self.include_for_metrics or []), "inputs"]
        if self.torchdynamo is not None:
            self.torch_compile_backend = self.torchdynamo
        if self.adafactor:
            self.optim = "adafactor"
        if self.logging_dir is not None:
            os.environ.setdefault("TENSORBOARD_LOGGING_DIR", self.logging_dir)
        if self.push_to_hub_organization is not None:
            name = str(self.hub_model_id or Path(self.output_dir or "trainer_output").name)  # type: ignore[has-type]
            self.hub_model_id: str | None = f"{self.push_to_hub_organization}/{name}"
        batches = {name: getattr(self, name) for name in ("dispatch_batches", "split_batches")}
        if asked := {name: value for name, value in batches.items() if value is not None}:
            config: Any = self.accelerator_config or {}  # type: ignore[has-type]
            self.accelerator_config: Any = {**(config if isinstance(config, dict) else config.to_dict()), **asked}


@dataclass
class ModelConfig:
    """Which model is loaded, how, and with which adapter: made for `HfArgumentParser`."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Directory or hub name of the model."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit."})
    torch_dtype: str | None = field(
        default=None,
        metadata={"help": "Type of the weights.", "choices": ["auto", "bfloat16", "float16", "float32"]},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    attn_implementation: str | None = field(default=None, metadata={"help": "As in --attn_implementation=sdpa."})
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter."})
    lora_r: int = field(default=16, metadata={"help": "Rank."})
    lora_alpha: int = field(default=32, metadata={"help": "The scale is alpha/r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "On adapter inputs."})
    lora_target_modules: list[str] | None = field(default=None, metadata={"help": "Names of the adapted layers."})
    lora_modules_to_save: list[str] | None = field(default=None, metadata={"help": "Layers trained in full."})
    lora_task_type: str = field(default="CAUSAL_LM", metadata={"help": "SEQ_CLS for reward models."})
    use_rslora: bool = field(default=False, metadata={"help": "Scale by alpha/sqrt(r)."})
    load_in_8bit: bool = field(default=False, metadata={"help": "Hold the base model in 8 bits."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Hold the base model in 4 bits."})
    bnb_4bit_quant_type: str | None = field(default="nf4", metadata={"help": "fp4 or nf4."})
    use_bnb_nested_quant: bool = field(default=False, metadata={"help": "Quantize the scales, too."})

    def __post_init__(self) -> None:
        """Check, and take a single target as a pattern, such as all-linear."""
        if self.load_in_8bit and self.load_in_4bit:
            raise ValueError("You can't use 8 bit and 4 bit precision at the same time")
        if isinstance(self.lora_target_modules, list) and len(self.lora_target_modules) == 1:
            self.lora_target_modules = self.lora_target_modules[0]  # type: ignore[assignment]


def get_peft_config(model_config: ModelConfig) -> PeftConfig | None:
    """The LoRA configuration that the arguments ask for, or None."""
    if not model_config.use_peft:
        return None
    return LoraConfig(
        task_type=model_config.lora_task_type,
        r=model_config.lora_r,
        target_modules=model_config.lora_target_modules,
        lora_alpha=model_config.lora_alpha,
        lora_dropout=model_config.lora_dropout,
        bias="none",
        use_rslora=model_config.use_rslora,
        modules_to_save=model_config.lora_modules_to_save,
    )


def get_quantization_config(model_config: ModelConfig) -> BitsAndBytesConfig | None:
    """How bitsandbytes holds the base model, or None."""
    if model_config.load_in_4bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=model_config.torch_dtype,  # as for the rest of the model
            bnb_4bit_quant_type=model_config.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=model_config.use_bnb_nested_quant,
            bnb_4bit_quant_storage=model_config.torch_dtype,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if model_config.load_in_8bit else None


def get_kbit_device_map() -> dict[str, int] | None:
    """The whole model on this process's own GPU; None where there is none."""
    return {"": PartialState().local_process_index} if torch.cuda.is_available() else None


def get_formatting_func_from_dataset(dataset: Any, tokenizer: PreTrainedTokenizerBase) -> Callable[[Any], Any] | None:
    """A function that renders rows (one, or a batch as columns) with the chat template; None for other columns.

    Columns ``messages`` or ``conversations`` of ``{role, content}``, or nothing but a text ``prompt`` and
    ``completion``.
    """
    features = getattr(dataset, "features", None) or {}
    for column in ("messages", "conversations"):
        if column in features:
            return _renders(operator.itemgetter(column), tokenizer) if _is_chat(features[column]) else None
    if set(features) == {"prompt", "completion"} and all(_is_text(feature) for feature in features.values()):
        roles = (("user", "prompt"), ("assistant", "completion"))
        return _renders(lambda row: [{"role": role, "content": row[column]} for role, column in roles], tokenizer)
    return None


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _is_chat(feature: Any) -> bool:
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return isinstance(inner, dict) and set(inner) == {"role", "content"} and all(map(_is_text, inner.values()))


def _renders(messages_of: Callable[[Any], Any], tokenizer: PreTrainedTokenizerBase) -> Callable[[Any], Any]:
    def render(rows: Any) -> Any:
        first = next(iter(rows.values()))
        batched = isinstance(first, list) and not (first and isinstance(first[0], dict))
        if not batched:
            return tokenizer.apply_chat_template(messages_of(rows), tokenize=False)
        single = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        return [tokenizer.apply_chat_template(messages_of(row), tokenize=False) for row in single]

    return render


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

    _tag_names = ("trl", "sft")
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
        peft_config: PeftConfig | None = None,
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
        args = _sft_config(args, {name: given[name] for name in MOVED if given[name] is not None})
        _check(args, model, data_collator, peft_config)
        _tell(args, model, peft_config)
        with _as_value_error():
            tokenizer = processing_class if processing_class is not None else tokenizer
            if tokenizer is None:
                tokenizer = _tokenizer_of(model, args)
            text_tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
            _set_length(args, text_tokenizer)
            with PartialState().local_main_process_first():
                rows = _Rows.of(train_dataset, eval_dataset, formatting_func, text_tokenizer, args)
            plugins = _plugins(args, text_tokenizer, rows, None if isinstance(model, PeftModel) else peft_config)
            self._stages = _stages(model or model_init, args, rows, plugins, text_tokenizer, data_collator)
            self._vocabulary = Vocabulary(text_tokenizer, [], changed=False)
            sets = rows.prepared(self._stages, text_tokenizer, args)
            if model is not None:
                model = self._stages.load_model(self._vocabulary, None if isinstance(model, str) else model)
            self._collates_plain_rows = data_collator is not None and bool(rows.to_prepare)
            use_cache = None if model is None else getattr(model.config, "use_cache", None)
            super().__init__(
                loss=self._stages.make_loss(model),
                model=model,
                args=one_device(args),
                data_collator=self._stages.make_collator(text_tokenizer),
                train_dataset=sets.pop(TRAIN, None),
                eval_dataset=sets.get(None, sets or None),
                processing_class=tokenizer,
                model_init=model_init,
                compute_metrics=compute_metrics,
                callbacks=[*self._stages.callbacks(), *(callbacks or [])],
                optimizers=optimizers,
                preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            )
        self.neftune_noise_alpha = None  # the plugin does it
        if not args.use_cache and use_cache is not None:
            self.model.config.use_cache = use_cache  # which is saved; training uses none anyhow
        self.dataset_num_proc, self.dataset_batch_size = args.dataset_num_proc, args.dataset_batch_size
        if hasattr(self.model, "add_model_tags"):
            self.model.add_model_tags(list(self._tag_names))
        if args.packing and self.train_dataset is not None:
            if args.max_steps > 0:
                warnings.warn(
                    "You passed `packing=True` to the SFTTrainer/SFTConfig, and `max_steps` as well: the data is gone "
                    "through again and again until `max_steps` are reached, which may be several epochs.",
                    stacklevel=2,
                )
            self.train_dataset.infinite = args.max_steps > 0

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, or the processor that was given in its place."""
        return self.processing_class

    def call_model_init(self, trial: Any = None) -> Any:
        """As the Trainer's; the model gets what the plugins do to one."""
        return self._stages.load_model(self._vocabulary, super().call_model_init(trial))

    def train(self, *arguments: Any, **options: Any) -> Any:
        """As the Trainer's.

        Raises:
            ValueError: if a `DataCollatorForCompletionOnlyLM` leaves nothing to train on.
        """
        with _as_value_error():
            self._see_that_something_is_trained()
            return super().train(*arguments, **options)

    def _inner_training_loop(self, *arguments: Any, **options: Any) -> Any:
        with self.loss_head.installed(), self._stages.training(self.model):
            return super()._inner_training_loop(*arguments, **options)

    def _see_that_something_is_trained(self) -> None:
        rows = self.train_dataset
        if not isinstance(self.data_collator, DataCollatorForCompletionOnlyLM) or not isinstance(
            rows, datasets.Dataset
        ):
            return
        looked_at = [rows[at] for at in range(0, len(rows), -(-len(rows) // LOOKED_AT))]
        for row in looked_at:
            if (self._batch_collator()([row])["labels"] != self.data_collator.ignore_index).any():
                return
        raise ValueError(
            f"nothing would be trained: the templates were found in none of {len(looked_at)} rows. Give the token ids "
            "that they have in context, raise max_seq_length, or use sftkit's plugin completion_only, which finds text."
        )

    def _batch_collator(self) -> Any:
        own = self.data_collator
        return WithPositions(PlainRows(own) if self._collates_plain_rows else own)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*self._signature_columns, WEIGHTS, "position_ids"]

    def _activate_neftune(self, model: Any) -> Any:
        """The model with NEFTune's noise in training mode, until ``neftune_hook_handle.remove()``."""
        self.neftune_hook_handle = _Held()
        for context in self._stages.plugins.hook.inject_noise(model=model):
            self.neftune_hook_handle.enter_context(context)
        return model

    def create_model_card(self, *arguments: Any, tags: str | list[str] | None = None, **options: Any) -> None:
        """As the Trainer's, with the tags of this one."""
        given = [tags] if isinstance(tags, str) else list(tags or [])
        tags = [*given, *(tag for tag in self._tag_names if tag not in given)]
        super().create_model_card(*arguments, tags=tags, **options)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        card = Path(output_dir or self.args.output_dir, "README.md")
        if self.args.should_save and not card.exists():
            data = ModelCardData(library_name="transformers", tags=list(self._tag_names))
            ModelCard(f"---\n{data.to_yaml()}\n---\n\nTrained with sftkit.\n").save(card)


TRAIN = "train"
LOOKED_AT = 100  # rows that are tried before a training with templates
#: Arguments of the trainer that are the configuration's by now.
MOVED = (
    *("dataset_text_field", "packing", "max_seq_length", "num_of_sequences", "chars_per_token", "dataset_num_proc"),
    *("dataset_batch_size", "neftune_noise_alpha", "model_init_kwargs", "dataset_kwargs", "eval_packing"),
)


class _Held(contextlib.ExitStack):
    """Contexts that stay entered until ``remove``, as the handle of a hook."""

    remove = contextlib.ExitStack.close


@contextlib.contextmanager
def _as_value_error() -> Iterator[None]:
    try:
        yield
    except SftkitError as error:
        raise ValueError(str(error)) from error


def _sft_config(args: TrainingArguments | None, moved: dict[str, Any]) -> SFTConfig:
    if args is None:
        warnings.warn("No `SFTConfig` passed, using `output_dir=tmp_trainer`.", stacklevel=3)
        args = SFTConfig(output_dir="tmp_trainer")
    elif not isinstance(args, SFTConfig):
        fields = [f.name for f in dataclasses.fields(TrainingArguments) if f.init]
        args = SFTConfig(**{name: getattr(args, name) for name in fields})
    if moved:
        what = f"Deprecated argument(s) of SFTTrainer: {', '.join(moved)}. Set them in the SFTConfig instead."
        warnings.warn(what, FutureWarning, stacklevel=3)
    for name, value in moved.items():
        what = f"You passed a `{name}` argument to the SFTTrainer, its value will override the one in the `SFTConfig`."
        warnings.warn(what, stacklevel=3)
        setattr(args, name, value)
    return args


def _check(args: SFTConfig, model: Any, collator: Any, peft_config: Any) -> None:
    if args.model_init_kwargs is not None and not isinstance(model, str):
        raise ValueError("You passed model_init_kwargs to the SFTConfig, but your model is already instantiated.")
    if args.packing and isinstance(collator, DataCollatorForCompletionOnlyLM):
        raise ValueError(
            "You passed a `DataCollatorForCompletionOnlyLM` to the SFTTrainer. This is not compatible with the "
            "`packing` argument."
        )
    if peft_config is not None and not isinstance(peft_config, PeftConfig):
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
    if isinstance(model, PeftModel) and peft_config is not None:
        warnings.warn("The model is a PeftModel already: its adapter is trained, not `peft_config`.", stacklevel=3)


def _model_section(model: Any, args: SFTConfig) -> Any:
    """The section ``model`` of a model given by name; a loaded one as it is."""
    if not isinstance(model, str):
        return model
    options = {name: value for name, value in (args.model_init_kwargs or {}).items() if value is not None}
    dtype = options.pop("torch_dtype", options.pop("dtype", "float32"))
    known = dtype == "auto" or isinstance(dtype, torch.dtype)
    if not known and not (isinstance(dtype, str) and isinstance(getattr(torch, dtype, None), torch.dtype)):
        raise ValueError(
            "Invalid `torch_dtype` passed to the SFTConfig. Expected a string with either `torch.dtype` or 'auto', "
            f"but got {dtype}."
        )
    for name in ("load_in_8bit", "load_in_4bit"):
        if options.pop(name, False):
            options["quantization_config"] = BitsAndBytesConfig(**{name: True})
    section = {name: options.pop(name) for name in ("revision", "trust_remote_code") if name in options}
    if options.get("use_safetensors"):
        del options["use_safetensors"]  # as always
    return {"name": model, "dtype": str(dtype).removeprefix("torch."), "options": options, **section}


def _tokenizer_of(model: Any, args: SFTConfig) -> Any:
    if model is None:
        raise ValueError("`model_init` says nothing of the tokenizer: pass it as `tokenizer`")
    section = _model_section(model if isinstance(model, str) else model.config._name_or_path, args)
    tokenizer = Pipeline(model=section, data=[]).stages().load_tokenizer().tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _set_length(args: SFTConfig, tokenizer: Any) -> None:
    if args.max_seq_length is None:
        args.max_seq_length = min(tokenizer.model_max_length, 1024)
        what = "You didn't pass a `max_seq_length` argument to the SFTTrainer, this will default to "
        warnings.warn(f"{what}{args.max_seq_length}", stacklevel=4)
    if tokenizer.padding_side not in (None, "right"):
        warnings.warn(
            "You passed a tokenizer with `padding_side` not equal to `right` to the SFTTrainer. This might lead to "
            "some unexpected behaviour due to overflow issues when training a model in half-precision. You might "
            "consider adding `tokenizer.padding_side = 'right'` to your code.",
            stacklevel=4,
        )


def _plugins(args: SFTConfig, tokenizer: Any, rows: "_Rows", peft_config: PeftConfig | None) -> list[Any]:
    chosen: list[Any] = []
    if args.packing and rows.to_prepare:
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


def _stages(model: Any, args: SFTConfig, rows: "_Rows", plugins: list[Any], tokenizer: Any, collator: Any) -> Any:
    """The run as sftkit sees it."""
    data = {
        "loss": "all",
        "max_length": args.max_seq_length,
        "text_column": args.dataset_text_field or "text",
        "special_tokens": "tokenizer" if rows.add_special_tokens else "none",
        "streaming": isinstance(rows.train, datasets.IterableDataset),
        "shuffle_buffer": 0,
        "window": args.dataset_batch_size,
    }
    pipeline = Pipeline(
        model=_model_section(model, args),
        data=[] if rows.train is None else rows.train,
        eval=rows.eval or None,
        plugins=plugins,
        train=_train_section(args),
        config={"data": data},
        tokenizer=tokenizer,
        collator=collator,
    )
    return pipeline.stages()


def _train_section(args: SFTConfig) -> dict[str, Any]:
    """What differs from the defaults and can be written down: plugins read it."""
    section = {}
    for known in dataclasses.fields(TrainingArguments):
        value = getattr(args, known.name)
        value = value.value if isinstance(value, enum.Enum) else value
        plain = isinstance(value, bool | int | float | str | dict | list)
        if known.name in allowed_fields() and plain and value != known.default:
            section[known.name] = value
    return section


@dataclass
class _Rows:
    """The data sets by name, ``train`` or that of an evaluation set (None where there is just one).

    Attributes:
        as_they_are: sets that are not prepared.
        to_prepare: sets as they go into the preparation, and as they were given.
        add_special_tokens: whether the tokenizer's special tokens are put around texts.
    """

    as_they_are: dict[Any, Any]
    to_prepare: dict[Any, tuple[Any, Any]]
    add_special_tokens: bool

    @classmethod
    def of(cls, train: Any, evaluation: Any, function: Any, tokenizer: Any, args: SFTConfig) -> "_Rows":
        """Sort them, and let the formatting function make texts.

        Raises:
            ValueError: if the function makes no list of texts from a batch.
        """
        sets: dict[Any, Any] = {TRAIN: train} if train is not None else {}
        if evaluation is not None:
            sets |= evaluation if isinstance(evaluation, dict) else {None: evaluation}
        options = args.dataset_kwargs or {}
        rows = cls({}, {}, options.get("add_special_tokens", True))
        for name, given in sets.items():
            if options.get("skip_prepare_dataset") or not _is_raw(given):
                rows.as_they_are[name] = given
                if function is not None and not options.get("skip_prepare_dataset") and _has_ids(given):
                    warnings.warn(
                        "The data set holds `input_ids` already: `formatting_func` is not used.", stacklevel=4
                    )
                continue
            field = args.dataset_text_field
            pairs = {"prompt", "completion"} == set(_columns(given))
            if pairs and field is None and function is None and tokenizer.chat_template:
                function = get_formatting_func_from_dataset(given, tokenizer)
                rows.add_special_tokens = rows.add_special_tokens and function is None
            made = given.select_columns([field]) if field in _columns(given) else given
            if function is not None and field is None:
                made = _texts(given, function, args)
            rows.to_prepare[name] = (made, given)
        return rows

    @property
    def train(self) -> Any:
        """The training set to be prepared, or None."""
        return self.to_prepare.get(TRAIN, (None,))[0]

    @property
    def eval(self) -> dict[str, Any]:
        """The evaluation sets to be prepared."""
        held_out = {name or EVAL: made for name, (made, _) in self.to_prepare.items() if name != TRAIN}
        streamed = (name for name, made in held_out.items() if isinstance(made, datasets.IterableDataset))
        return held_out | {name: datasets.Dataset.from_list(list(held_out[name])) for name in streamed}

    def prepared(self, stages: Any, tokenizer: Any, args: SFTConfig) -> dict[Any, Any]:
        """All sets, ready for the collator."""
        if self.train is not None:
            data = stages.prepare_data(tokenizer)
        elif self.to_prepare:
            data = stages.prepare_held_out(tokenizer)
        else:
            return self.as_they_are
        if PartialState().is_main_process:
            for split, counts in data.summary().items():
                logger.info("%s: %s", split, ", ".join(f"{number} {what}" for what, number in counts.items()))
        made = {name: data.splits[name or EVAL] for name in self.to_prepare}
        if not args.remove_unused_columns and not args.packing:
            made = {name: _beside(dataset, self.to_prepare[name][1]) for name, dataset in made.items()}
        return made | self.as_they_are


EVAL = "eval"


def _columns(rows: Any) -> list[str]:
    return rows.column_names or list(next(iter(rows)))


def _is_raw(rows: Any) -> bool:
    return isinstance(rows, datasets.Dataset | datasets.IterableDataset) and not _has_ids(rows)


def _has_ids(rows: Any) -> bool:
    return isinstance(rows, datasets.Dataset | datasets.IterableDataset) and "input_ids" in _columns(rows)


def _texts(rows: Any, function: Callable[[Any], Any], args: SFTConfig) -> Any:
    """Rows with the texts that the function makes: of a batch, or with packing of one row."""

    def of_batch(batch: Any) -> dict[str, Any]:
        texts = function(batch)
        if not isinstance(texts, list):
            raise ValueError(
                "The `formatting_func` should return a list of processed strings since it can lead to silent bugs: "
                f"without packing it gets a batch of rows, and it returned {type(texts).__name__}."
            )
        return {"text": texts}

    options: dict[str, Any] = {"remove_columns": _columns(rows)}
    if args.packing:
        return rows.map(lambda row: {"text": function(row)}, **options)
    if isinstance(rows, datasets.Dataset):
        options["num_proc"] = args.dataset_num_proc
    return rows.map(of_batch, batched=True, batch_size=args.dataset_batch_size, **options)


def _beside(made: Any, given: Any) -> Any:
    """Prepared rows with the other columns that the data had, for a collator that reads them."""
    if not isinstance(made, datasets.Dataset) or not isinstance(given, datasets.Dataset):
        return made
    if len(made) != len(given):
        raise ValueError(
            f"remove_unused_columns=False keeps each row's other columns, and {len(given)} rows became {len(made)}"
        )
    rest = given.remove_columns([name for name in given.column_names if name in made.column_names])
    both = datasets.concatenate_datasets([made.with_format(None), rest.with_format(None)], axis=1)
    return both.with_format("numpy", columns=made.column_names, output_all_columns=True)


@dataclass(frozen=True)
class PlainRows:
    """A collator of one's own, given rows as TRL's had them: ``input_ids`` and ``attention_mask``, as lists."""

    collator: Callable[[list[Any]], Any]

    def __call__(self, examples: list[Any]) -> Any:
        """The collator's batch; that of packed rows has no attention mask, which would join their documents."""
        rows = [self._plain(example) for example in examples]
        batch = self.collator(rows)
        if "position_ids" in rows[0]:
            if "position_ids" not in batch:
                raise ValueError("the data_collator leaves out position_ids, which keep packed documents apart")
            batch = {name: value for name, value in batch.items() if name != "attention_mask"}
        return batch

    def _plain(self, example: Any) -> Any:
        ids = example.get("input_ids")
        if not isinstance(ids, np.ndarray):  # not prepared here
            return example
        row = {name: value for name, value in example.items() if name not in ("labels", WEIGHTS)}
        row |= {"input_ids": ids.tolist(), "attention_mask": [1] * len(ids)}
        return row | ({"position_ids": row["position_ids"].tolist()} if "position_ids" in row else {})


class RichProgressCallback(Progress):
    """Shows the progress of training as sftkit does."""

    def __init__(self) -> None:
        super().__init__(Display())


@dataclass
class SFTScriptArguments:
    """Which data a script trains on."""

    dataset_name: str = field(default="timdettmers/openassistant-guanaco", metadata={"help": "Data set."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    config: str | None = field(default=None, metadata={"help": "YAML file of defaults for all arguments."})
    gradient_checkpointing_use_reentrant: bool = field(default=False, metadata={"help": "Checkpoint reentrantly."})


SftScriptArguments = SFTScriptArguments


class TrlParser(HfArgumentParser):
    """`HfArgumentParser` with defaults from a YAML file, named by ``--config``."""

    def parse_args_and_config(self, args: list[str] | None = None, return_remaining_strings: bool = False) -> Any:
        """The dataclasses, from the file and the command line, which goes before it.

        Raises:
            ValueError: for a key of the file that is no argument.
        """
        args = sys.argv[1:] if args is None else list(args)
        at = args.index("--config") if "--config" in args else None
        if at is not None:
            values = yaml.safe_load(Path(args[at + 1]).read_text(encoding="utf-8")) or {}
            os.environ.update({name: str(value) for name, value in values.pop("env", {}).items()})
            known = {action.dest for action in self._actions}
            if unknown := [name for name in values if name not in known]:
                raise ValueError(f"{args[at + 1]}: no such argument: {', '.join(unknown)}")
            self.set_defaults(**values)
            if "config" not in known:
                del args[at : at + 2]
        return self.parse_args_into_dataclasses(args, return_remaining_strings=return_remaining_strings)


def init_zero_verbose() -> None:
    """Let nothing but errors be logged."""
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
