"""What of a configuration may change between a run and its resumption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sftkit.config.evaluation import fields_of
from sftkit.config.train_fields import DEFAULTS, MOVED, REFUSED, allowed_fields

if TYPE_CHECKING:
    from sftkit.config.models import RunConfig

#: How evaluations are made. A schedule that follows a metric depends on them.
EVALUATION = frozenset(
    (
        "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size",
        "prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps",
        "include_for_metrics", "batch_eval_metrics",
    )
)  # fmt: skip
#: Fields of `transformers.TrainingArguments` that do not change what is trained.
FREE = EVALUATION | frozenset(
    (
        "output_dir",
        # logging and reporting
        "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter",
        "include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name",
        "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "debug", "skip_memory_metrics",
        # saving
        "save_only_model", "save_strategy", "save_steps", "save_on_each_node", "save_total_limit",
        "enable_jit_checkpoint", "load_best_model_at_end", "push_to_hub", "hub_private_repo", "hub_model_id",
        "hub_strategy", "hub_always_push", "hub_revision", "restore_callback_states_from_checkpoint",
        # how rows are loaded
        "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
        "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
        # memory and waiting
        "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing",
        "activation_checkpointing_kwargs", "torch_empty_cache_steps", "use_cache", "ddp_find_unused_parameters",
        "ddp_static_graph", "ddp_backend",
    )
)  # fmt: skip
#: The length of a run, which may grow.
LENGTH = ("max_steps", "num_train_epochs")
#: Fields that change what is trained.
FIXED = frozenset(
    (
        "per_device_train_batch_size", "gradient_accumulation_steps", "average_tokens_across_devices",
        "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
        "optim", "optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
        "max_grad_norm", "bf16", "fp16", "tf32", "use_cpu", "torch_compile", "torch_compile_backend",
        "torch_compile_mode", "full_determinism", "seed", "data_seed", "ignore_data_skip", "train_sampling_strategy",
        "length_column_name", "dataloader_drop_last", "dataloader_in_order", "accelerator_config",
        "metric_for_best_model", "greater_is_better",  # the best value so far is that of the old metric
        "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
    )
)  # fmt: skip
#: Schedules whose rates do not depend on the number of steps, and those that follow a metric.
ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt")
FOLLOWS_METRIC = ("reduce_lr_on_plateau", "greedy")
#: Keys of the section ``data`` that do not change the rows.
FREE_DATA = frozenset(("cache", "prepared"))


def train_values(config: RunConfig) -> dict[str, Any]:
    """The value of each field that may not change freely, also of those that the configuration does not set.

    A field that nobody has classified may not change.
    """
    configured = config.train | fields_of(config)
    values = {name: configured.get(name, DEFAULTS.get(name, field.default)) for name, field in _fields()}
    free = FREE - EVALUATION if values["lr_scheduler_type"] in FOLLOWS_METRIC else FREE
    return {name: value for name, value in values.items() if name not in free}


def length_of(train: Mapping[str, Any]) -> tuple[str, float]:
    """The field that sets the length of a run, and its value; steps override epochs.

    Args:
        train: from `train_values`.
    """
    steps, epochs = LENGTH
    return (steps, train[steps]) if train[steps] >= 0 else (epochs, train[epochs])


def depends_on_length(train: Mapping[str, Any]) -> bool:
    """Whether the learning rate at a step depends on the number of steps of the run.

    Args:
        train: from `train_values`.
    """
    schedule, warmup = train["lr_scheduler_type"], train["warmup_steps"]
    return schedule not in (*ENDLESS, *FOLLOWS_METRIC) or (schedule in ENDLESS[1:] and 0 < warmup < 1)


def unclassified() -> list[str]:
    """The fields of the installed `transformers.TrainingArguments` about which this module says nothing."""
    known = {*FREE, *FIXED, *LENGTH, *REFUSED, *MOVED}
    return [name for name in allowed_fields() if name not in known]


def _fields() -> list[tuple[str, Any]]:
    return [(name, field) for name, field in allowed_fields().items()]
