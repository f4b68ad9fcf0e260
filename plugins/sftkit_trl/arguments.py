"""`TrainingArguments` with the names of 2024, and `SFTConfig`, which adds the arguments of TRL 0.11's trainer."""

# Not `from __future__ import annotations`: HfArgumentParser reads the fields' types.

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers

#: Arguments that transformers 5 renamed.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_token": "hub_token",
    "push_to_hub_model_id": "hub_model_id",
}

#: Arguments whose feature transformers 5 removed.
REMOVED = ("tpu_num_cores", "mp_parameters", "tpu_metrics_debug", "jit_mode_eval", "use_ipex", "past_index")


def _old(instead: str, default: Any = None) -> Any:
    """A field of 2024, with its default then, whose help says what to use instead."""
    return field(default=default, metadata={"help": f"Argument of 2024. {instead}"})


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """`transformers.TrainingArguments` with the fields that it had in 2024.

    An old field sets the one that replaced it; a renamed one is None afterwards, so that copies keep later changes.

    Raises:
        ValueError: if an old argument asks for a feature that no longer exists.
    """

    evaluation_strategy: str | None = _old("Use eval_strategy.")
    per_gpu_train_batch_size: int | None = _old("Use per_device_train_batch_size.")
    per_gpu_eval_batch_size: int | None = _old("Use per_device_eval_batch_size.")
    warmup_ratio: float = _old("Use warmup_steps, which accepts a fraction too.", 0.0)
    no_cuda: bool = _old("Use use_cpu.", False)
    group_by_length: bool = _old("Use train_sampling_strategy=group_by_length.", False)
    include_inputs_for_metrics: bool = _old("Use include_for_metrics=['inputs'].", False)
    dispatch_batches: bool | None = _old("Use accelerator_config.")
    split_batches: bool | None = _old("Use accelerator_config.")
    torchdynamo: str | None = _old("Use torch_compile_backend.")
    adafactor: bool = _old("Use optim=adafactor.", False)
    logging_dir: str | None = _old("Use the environment variable TENSORBOARD_LOGGING_DIR.")
    push_to_hub_token: str | None = _old("Use hub_token.")
    push_to_hub_model_id: str | None = _old("Use hub_model_id.")
    push_to_hub_organization: str | None = _old("Use hub_model_id=ORGANIZATION/NAME.")
    overwrite_output_dir: bool = _old("No effect, except in scripts that read it.", False)
    save_safetensors: bool = _old("No effect: weights are always saved as safetensors.", True)
    use_mps_device: bool = _old("No effect: an Apple GPU is used if there is one.", False)
    include_tokens_per_second: bool = _old("No effect: tokens per second are always logged.", False)
    half_precision_backend: str | None = _old("No effect: torch's own mixed precision is used.")
    fp16_backend: str | None = _old("No effect: torch's own mixed precision is used.")
    fp16_opt_level: str | None = _old("No effect: it was an option of apex.")
    use_legacy_prediction_loop: bool = _old("No effect: there is one prediction loop.", False)
    ray_scope: str | None = _old("No effect: it was an option of hyperparameter search with ray.")
    fsdp_min_num_params: int = _old("Use min_num_params in fsdp_config.", 0)
    fsdp_transformer_layer_cls_to_wrap: str | None = _old("Use transformer_layer_cls_to_wrap in fsdp_config.")
    tpu_num_cores: int | None = _old("Removed in transformers 5.")
    tpu_metrics_debug: bool = _old("Removed in transformers 5.", False)
    past_index: int = _old("Removed in transformers 5.", -1)
    mp_parameters: str | None = _old("Removed in transformers 5.")
    jit_mode_eval: bool = _old("Removed in transformers 5.", False)
    use_ipex: bool = _old("Removed in transformers 5.", False)

    def __post_init__(self) -> None:
        """Move the values of old arguments to the arguments that replaced them."""
        if not self.save_safetensors:
            raise ValueError("save_safetensors=False: weights are saved as safetensors, not as pickles. Drop it.")
        if "apex" in (self.half_precision_backend, self.fp16_backend):
            raise ValueError("apex is no longer supported. Drop half_precision_backend; set fp16=True or bf16=True.")
        for name in REMOVED:
            if getattr(self, name) not in (None, False, "", -1):
                raise ValueError(f"{name} was removed in transformers 5. Drop the argument.")
        for old, new in RENAMED.items():
            if (value := getattr(self, old)) is not None:
                setattr(self, new, value)
                setattr(self, old, None)
        self._merge_old()
        ratio, self.warmup_ratio = self.warmup_ratio, None  # type: ignore[assignment]
        super().__post_init__()  # transformers 5.12 lets a ratio override the steps
        self.warmup_ratio = ratio

    def _merge_old(self) -> None:
        if self.warmup_ratio and not self.warmup_steps:  # type: ignore[has-type]
            # As in 2024, a number of steps overrides the ratio; warmup_steps=1 would mean one step.
            self.warmup_steps: float = min(self.warmup_ratio, 1 - 1e-9)
        if self.no_cuda:
            self.use_cpu = True
        if self.group_by_length:
            self.train_sampling_strategy = "group_by_length"
        if self.include_inputs_for_metrics and "inputs" not in (self.include_for_metrics or []):
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
            self.hub_model_id: str | None = f"{self.push_to_hub_organization}/{name.rpartition('/')[2]}"
        wrapping = {
            "min_num_params": self.fsdp_min_num_params or None,
            "transformer_layer_cls_to_wrap": self.fsdp_transformer_layer_cls_to_wrap,
        }
        if asked := _without_none(wrapping):
            self.fsdp_config: Any = {**(self.fsdp_config or {}), **asked}  # type: ignore[has-type]
        batches = {"dispatch_batches": self.dispatch_batches, "split_batches": self.split_batches}
        if asked := _without_none(batches):
            config: Any = self.accelerator_config or {}  # type: ignore[has-type]
            self.accelerator_config: Any = {**(config if isinstance(config, dict) else config.to_dict()), **asked}


@dataclass
class SFTConfig(TrainingArguments):
    """`TrainingArguments` with the fields of TRL 0.11's SFTConfig."""

    dataset_text_field: str | None = field(default=None, metadata={"help": "Column that holds the text."})
    packing: bool = field(default=False, metadata={"help": "Pack several texts into each row."})
    max_seq_length: int | None = field(
        default=None, metadata={"help": "Tokens per row. Default: min(tokenizer.model_max_length, 1024)."}
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Processes for your formatting function; everything else runs in threads."}
    )
    dataset_batch_size: int = field(default=1000, metadata={"help": "Rows per call of your formatting function."})
    model_init_kwargs: dict | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained, if the model is passed by name."}
    )
    dataset_kwargs: dict | None = field(
        default=None, metadata={"help": "add_special_tokens, append_concat_token, skip_prepare_dataset."}
    )
    eval_packing: bool | None = field(
        default=None, metadata={"help": "Pack evaluation sets. Default: the value of packing."}
    )
    num_of_sequences: int = field(default=1024, metadata={"help": "Sequences in the buffer of ConstantLengthDataset."})
    chars_per_token: float = field(default=3.6, metadata={"help": "Characters per token, to size that buffer."})
    use_liger: bool = field(default=False, metadata={"help": "Use the kernels of liger-kernel."})


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
