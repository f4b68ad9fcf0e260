"""The arguments of TRL 0.11's scripts: dataclasses for `HfArgumentParser`, and what they ask for."""

# Not `from __future__ import annotations`: HfArgumentParser reads the fields' types.

import copy
import dataclasses
import enum
import os
import sys
import warnings
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from transformers import BitsAndBytesConfig, HfArgumentParser, TrainingArguments

from sftkit.api import allowed_fields

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


#: Arguments that ask for what transformers 5 has no more, with their values that ask for nothing.
GONE: dict[str, Any] = {
    **dict.fromkeys(("tpu_num_cores", "mp_parameters", "tpu_metrics_debug", "jit_mode_eval", "use_ipex")),
    "past_index": -1,
}


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
    fsdp_min_num_params: int | None = _old("min_num_params of fsdp_config.")
    fsdp_transformer_layer_cls_to_wrap: str | None = _old("transformer_layer_cls_to_wrap of fsdp_config.")
    tpu_num_cores: int | None = _old("there is no more of it.")
    tpu_metrics_debug: bool | None = _old("there is no more of it.")
    past_index: int | None = _old("there is no more of it.")
    mp_parameters: str | None = _old("there is no more of it.")
    jit_mode_eval: bool | None = _old("there is no more of it.")
    use_ipex: bool | None = _old("there is no more of it.")

    def __post_init__(self) -> None:
        """Put what the old arguments ask for in the place of today."""
        if self.save_safetensors is False:
            raise ValueError("save_safetensors=False: pickles are not written; drop the argument")
        if "apex" in (self.half_precision_backend, self.fp16_backend):
            raise ValueError("apex is not used any more: drop half_precision_backend and set fp16=True or bf16=True")
        for name, nothing in GONE.items():
            if getattr(self, name) not in (None, False, "", nothing):
                raise ValueError(f"{name}: transformers 5 has no more of it; drop the argument")
        if self.warmup_ratio is not None and self.warmup_steps:
            self.warmup_ratio = None  # steps go before it
        if self.warmup_ratio is not None and self.warmup_ratio >= 1:
            self.warmup_ratio = 1 - 1e-9  # 1 would be a step
        for old, new in RENAMED.items():
            if (value := getattr(self, old)) is not None:
                setattr(self, new, value)
                setattr(self, old, None)
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
        if self.optim == "adamw_hf":
            self.optim = "adamw_torch"  # the same updates
        if self.logging_dir is not None:
            os.environ.setdefault("TENSORBOARD_LOGGING_DIR", self.logging_dir)
        if self.push_to_hub_organization is not None:
            name = str(self.hub_model_id or Path(self.output_dir or "trainer_output").name)  # type: ignore[has-type]
            self.hub_model_id: str | None = f"{self.push_to_hub_organization}/{name}"
        wraps = {"min_num_params": self.fsdp_min_num_params or None}
        wraps["transformer_layer_cls_to_wrap"] = self.fsdp_transformer_layer_cls_to_wrap  # type: ignore[assignment]
        if asked := {name: value for name, value in wraps.items() if value is not None}:
            self.fsdp_config: Any = {**(self.fsdp_config or {}), **asked}  # type: ignore[has-type]
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


def get_peft_config(model_config: ModelConfig) -> Any:
    """The LoRA configuration that the arguments ask for, or None."""
    if not model_config.use_peft:
        return None
    if find_spec("peft") is None:
        raise ValueError('use_peft needs peft: pip install "sftkit[peft]"')
    from peft import LoraConfig

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
        args = [part for word in args for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
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


#: Arguments of the trainer that are the configuration's by now.
MOVED = (
    *("dataset_text_field", "packing", "max_seq_length", "num_of_sequences", "chars_per_token", "dataset_num_proc"),
    *("dataset_batch_size", "neftune_noise_alpha", "model_init_kwargs", "dataset_kwargs", "eval_packing"),
)


def sft_config(args: TrainingArguments | None, moved: dict[str, Any]) -> SFTConfig:
    """The trainer's arguments, with those that were given to the trainer itself, as TRL warned one not to."""
    if args is None:
        warnings.warn("No `SFTConfig` passed, using `output_dir=tmp_trainer`.", stacklevel=3)
        args = SFTConfig(output_dir="tmp_trainer")
    elif not isinstance(args, SFTConfig):
        fields = [f.name for f in dataclasses.fields(TrainingArguments) if f.init]
        args = SFTConfig(**{name: getattr(args, name) for name in fields})
    args = copy.copy(args)  # another trainer may get them too
    if moved:
        what = f"Deprecated argument(s) of SFTTrainer: {', '.join(moved)}. Set them in the SFTConfig instead."
        warnings.warn(what, FutureWarning, stacklevel=3)
    for name, value in moved.items():
        what = f"You passed a `{name}` argument to the SFTTrainer, its value will override the one in the `SFTConfig`."
        warnings.warn(what, stacklevel=3)
        setattr(args, name, value)
    return args


def check_dataset_kwargs(args: SFTConfig) -> None:
    """What may stand in ``dataset_kwargs``.

    Raises:
        TypeError: for anything else.
    """
    known = ("add_special_tokens", "append_concat_token", "skip_prepare_dataset")
    if unknown := [name for name in args.dataset_kwargs or {} if name not in known]:
        raise TypeError(f"dataset_kwargs: unexpected {', '.join(unknown)}; known are {', '.join(known)}")


def set_length(args: SFTConfig, tokenizer: Any) -> None:
    """The length of rows, where it is left open, and what TRL warned of about padding. Changes the arguments."""
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


def model_section(model: Any, args: SFTConfig) -> Any:
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
    if "use_auth_token" in options:
        options["token"] = options.pop("use_auth_token")
    if options.get("use_safetensors"):
        del options["use_safetensors"]  # as always
    return {"name": model, "dtype": str(dtype).removeprefix("torch."), "options": options, **section}


def train_section(args: SFTConfig) -> dict[str, Any]:
    """What differs from the defaults and can be written down: plugins read it."""
    section = {}
    for known in dataclasses.fields(TrainingArguments):
        value = getattr(args, known.name)
        value = value.value if isinstance(value, enum.Enum) else value
        plain = isinstance(value, bool | int | float | str | dict | list)
        if known.name in allowed_fields() and plain and value != known.default:
            section[known.name] = value
    return section
