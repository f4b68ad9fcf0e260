"""What a script passes to `SFTTrainer`, checked and completed before any data is read."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from transformers import IntervalStrategy, TrainingArguments

from sftkit.api import Pipeline, has_adapter, use_one_device, warn_caller
from sftkit_plugins.completion_only.collator import DataCollatorForCompletionOnlyLM
from sftkit_trl.arguments import SFTConfig
from sftkit_trl.stages import model_section

#: Arguments of the trainer that moved to `SFTConfig`.
MOVED = (
    *("dataset_text_field", "packing", "max_seq_length", "num_of_sequences", "chars_per_token", "dataset_num_proc"),
    *("dataset_batch_size", "neftune_noise_alpha", "model_init_kwargs", "dataset_kwargs", "eval_packing"),
)
#: Arguments that the trainer uses as they are, and those that `transformers.Trainer` gets.
USED = ("model", "model_init", "train_dataset", "eval_dataset", "formatting_func", "data_collator")
PASSED_ON = ("compute_metrics", "optimizers", "preprocess_logits_for_metrics")
DATASET_KWARGS = ("add_special_tokens", "append_concat_token", "skip_prepare_dataset")


@dataclasses.dataclass(frozen=True)
class Script:
    """The arguments of `SFTTrainer`; all of them are the script's own objects.

    Attributes:
        args: the script's own if it is an `SFTConfig`, completed: with what was passed to the trainer itself, and with
            a length.
        peft_config: the adapter to train; None if the model has it already.
        processor: the tokenizer, or the processor that was passed as one.
        tokenizer: the tokenizer, or the processor's.
        passed_on: arguments that `transformers.Trainer` gets unchanged.
    """

    model: Any
    model_init: Callable[..., Any] | None
    args: SFTConfig
    train_dataset: Any
    eval_dataset: Any
    formatting_func: Callable[[Any], Any] | None
    data_collator: Callable[[list[Any]], Any] | None
    peft_config: Any
    processor: Any
    tokenizer: Any
    callbacks: list[Any]
    passed_on: dict[str, Any]

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Script:
        """From the trainer's arguments by name.

        Raises:
            ValueError: if arguments contradict each other, or the tokenizer cannot be used.
        """
        model, collator, peft_config = arguments["model"], arguments["data_collator"], arguments["peft_config"]
        args = _config(arguments["args"], {name: arguments[name] for name in MOVED if arguments[name] is not None})
        _check(args, model, collator, peft_config)
        if arguments["infinite"] is not None:
            warn_caller("The `infinite` argument is deprecated: set max_steps or num_train_epochs.")
        processor = arguments["tokenizer"] if arguments["processing_class"] is None else arguments["processing_class"]
        if processor is None:
            processor = _tokenizer_of(model, args)
        tokenizer = getattr(processor, "tokenizer", processor)
        _check_tokenizer(tokenizer)
        _fill_in_length(args, tokenizer)
        used = {name: arguments[name] for name in USED}
        if peft_config is not None and has_adapter(model):
            used["model"], peft_config = _with_further_adapter(model, peft_config), None
        return cls(
            **used,
            args=args,
            peft_config=peft_config,
            processor=processor,
            tokenizer=tokenizer,
            callbacks=list(arguments["callbacks"] or []),
            passed_on={name: arguments[name] for name in PASSED_ON},
        )

    def trainer_arguments(self, evaluates: bool) -> SFTConfig:
        """The arguments for `transformers.Trainer`. Changes them where it would refuse what TRL's trainer accepted.

        Args:
            evaluates: whether there is an evaluation set; without one, no evaluation is scheduled.
        """
        if not evaluates and self.args.eval_strategy != "no":
            warn_caller("Nothing is evaluated: `eval_strategy` is set, but there is no `eval_dataset`.")
            self.args.eval_strategy = IntervalStrategy.NO
        use_one_device(self.args)
        return self.args


def changed(args: SFTConfig, **values: Any) -> SFTConfig:
    """A copy with other values; unlike `dataclasses.replace`, it does not set up the processes again."""
    args = copy.copy(args)
    for name, value in values.items():
        setattr(args, name, value)
    return args


def check_dataset_kwargs(args: SFTConfig) -> None:
    """Refuse unknown names in ``dataset_kwargs``.

    Raises:
        TypeError: if there is one.
    """
    if unknown := [name for name in args.dataset_kwargs or {} if name not in DATASET_KWARGS]:
        raise TypeError(
            f"dataset_kwargs: unknown {', '.join(unknown)}. Allowed names: {', '.join(DATASET_KWARGS)}. "
            "Correct or remove the others."
        )


def is_of_peft(value: Any, name: str) -> bool:
    """Whether a value is an instance of a class of peft, which may be missing."""
    if find_spec("peft") is None:
        return False
    import peft

    return isinstance(value, getattr(peft, name))


def _config(args: TrainingArguments | None, moved: dict[str, Any]) -> SFTConfig:
    """The trainer's arguments as an `SFTConfig`; what was passed to the trainer itself overrides them. Changes it."""
    if args is None:
        warn_caller("No `SFTConfig` passed, using `output_dir=tmp_trainer`.")
        args = SFTConfig(output_dir="tmp_trainer")
    elif not isinstance(args, SFTConfig):
        known = {field.name for field in dataclasses.fields(SFTConfig)}
        fields = [field.name for field in dataclasses.fields(args) if field.init and field.name in known]
        args = SFTConfig(**{name: getattr(args, name) for name in fields})
    if moved:
        what = f"Deprecated argument(s) of SFTTrainer: {', '.join(moved)}. Set them in the SFTConfig instead."
        warn_caller(what, FutureWarning)
    for name, value in moved.items():
        warn_caller(
            f"You passed a `{name}` argument to the SFTTrainer, its value will override the one in the `SFTConfig`."
        )
        setattr(args, name, value)
    if args.use_liger_kernel:  # the Trainer would patch the model for good
        args.use_liger, args.use_liger_kernel = True, False
    return args


def _check(args: SFTConfig, model: Any, collator: Any, peft_config: Any) -> None:
    if args.model_init_kwargs is not None and not isinstance(model, str):
        raise ValueError("You passed model_init_kwargs to the SFTConfig, but your model is already instantiated.")
    if args.packing and isinstance(collator, DataCollatorForCompletionOnlyLM):
        raise ValueError(
            "You passed a `DataCollatorForCompletionOnlyLM` to the SFTTrainer. This is not compatible with the "
            "`packing` argument."
        )
    if peft_config is not None and not is_of_peft(peft_config, "PeftConfig"):
        raise ValueError(
            "If you want to use the PeftModel, you need to pass a PeftConfig object to the SFTTrainer, and you passed "
            f"a {type(peft_config)}."
        )
    if (kind := _fsdp_states(args)) not in ("", "1", "FULL_STATE_DICT"):
        raise ValueError(
            f"FSDP with state_dict_type {kind} saves no model that can be loaded. Set fsdp_config={{'state_dict_type': "
            "'FULL_STATE_DICT'}, or --fsdp_state_dict_type FULL_STATE_DICT of accelerate launch."
        )
    if args.eval_packing and not args.packing:
        raise ValueError("eval_packing=True has no effect without packing=True. Set packing=True, or drop it.")
    if isinstance(model, str):
        what = "You passed a model_id to the SFTTrainer. This will automatically create an `AutoModelForCausalLM` or a "
        warn_caller(f"{what}`PeftModel` (if you passed a `peft_config`) for you.")
    if is_of_peft(model, "PeftModel") and peft_config is not None:
        warn_caller("`peft_config` is not used: the model is a PeftModel already, and its own adapter is trained.")


def _fsdp_states(args: SFTConfig) -> str:
    """How FSDP saves weights, as the arguments or accelerate's launcher say it; empty without FSDP."""
    if settings := getattr(args, "fsdp_plugin_args", None):
        return str(settings.get("state_dict_type", "FULL_STATE_DICT")).upper()
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return ""
    default = "FULL_STATE_DICT" if os.environ.get("FSDP_VERSION", "1") == "1" else "SHARDED_STATE_DICT"
    return os.environ.get("FSDP_STATE_DICT_TYPE", default).upper()


def _tokenizer_of(model: Any, args: SFTConfig) -> Any:
    """The tokenizer that was saved with the model; it pads with EOS if it has no pad token."""
    if model is None:
        raise ValueError("`model_init` does not name a tokenizer. Pass one as `tokenizer`.")
    section = model_section(model if isinstance(model, str) else model.config._name_or_path, args)
    tokenizer = Pipeline(model=section, data=[]).stages().load_tokenizer().tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_tokenizer(tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} is not a fast tokenizer. Load one that has a tokenizer.json, for example "
            "with `AutoTokenizer`."
        )


def _with_further_adapter(model: Any, peft_config: Any) -> Any:
    """A model that has adapter layers: a PeftModel as it is, and any other with peft's own second adapter."""
    if is_of_peft(model, "PeftModel"):
        return model
    from peft import get_peft_model

    return get_peft_model(model, peft_config)


def _fill_in_length(args: SFTConfig, tokenizer: Any) -> None:
    """Fill in the length of rows; warns of a default length and of padding on the left."""
    if args.max_seq_length is None:
        args.max_seq_length = min(tokenizer.model_max_length, 1024)
        length = args.max_seq_length
        warn_caller(f"You didn't pass a `max_seq_length` argument to the SFTTrainer, this will default to {length}")
    if tokenizer.padding_side not in (None, "right"):
        warn_caller(
            "You passed a tokenizer with `padding_side` not equal to `right` to the SFTTrainer. This might lead to "
            "some unexpected behaviour due to overflow issues when training a model in half-precision. You might "
            "consider adding `tokenizer.padding_side = 'right'` to your code."
        )
