"""Rules and handlers of what several tools share: the fields of `TrainingArguments`, attention, adapters, trackers."""

from __future__ import annotations

from typing import Any

from sftkit_commands.init import engines
from sftkit_commands.init.local import Places
from sftkit_commands.init.translation import Always, Handled, Lost, Rule, To, Translation, shown

RESUME = Lost("a run is resumed on the command line", "sftkit run sft.yaml --resume")
OVERWRITE = Lost("a run is replaced on the command line", "sftkit run sft.yaml --overwrite")
HUB_TOKEN = Lost("secrets do not belong in a configuration", "set HF_TOKEN in the environment")
STOPS_EARLY = "evaluate.patience, with evaluate.best"
WAITING = To("run.timeout", note="a process that works is waited for, however long it takes")
_GONE = Lost("it is gone in transformers 5", "remove it")
_METRICS = Always("it only changes how predictions reach a function that computes metrics")

#: Fields of `TrainingArguments` that are not keys of ``train`` with the same name.
OWN: dict[str, Rule] = {
    "evaluation_strategy": To("train.eval_strategy"),
    "warmup_ratio": Handled("train.warmup_steps, as a fraction of all steps"),
    "warmup_steps": Handled("train.warmup_steps"),
    "optim": Handled("train.optim"),
    "group_by_length": Handled("train.train_sampling_strategy"),
    **engines.RULES,
    "no_cuda": To("train.use_cpu"),
    "use_mps_device": Always("the device is found without it"),
    "per_gpu_train_batch_size": To("train.per_device_train_batch_size"),
    "per_gpu_eval_batch_size": To("train.per_device_eval_batch_size"),
    "logging_dir": Lost("it is an environment variable", "set TENSORBOARD_LOGGING_DIR in the environment"),
    "save_safetensors": Always("weights are always saved as safetensors"),
    "overwrite_output_dir": OVERWRITE,
    "resume_from_checkpoint": RESUME,
    "hub_token": HUB_TOKEN,
    "push_to_hub_token": HUB_TOKEN,
    "push_to_hub_model_id": To("train.hub_model_id"),
    "push_to_hub_organization": Lost("it is part of the name", "train.hub_model_id=ORGANIZATION/NAME"),
    "remove_unused_columns": Always("the collator takes the columns that the model needs"),
    "label_names": Always("the labels are always in labels"),
    "length_column_name": Always("the length of a row is the number of its tokens"),
    "local_rank": Always("torchrun sets it"),
    "ddp_timeout": WAITING,
    "do_train": Handled("nothing; train.max_steps: 0 if it is false"),
    "do_eval": Always("data.eval and train.eval_strategy decide"),
    "do_predict": Lost("a run does not predict", "sftkit evaluate RUN"),
    "auto_find_batch_size": Always("a batch that does not fit is halved, with the same gradients"),
    "enable_jit_checkpoint": Always("a run always saves a checkpoint on SIGTERM"),
    "include_tokens_per_second": Always("it is always logged"),
    "bf16_full_eval": Lost("an evaluation computes in the precision of the training"),
    "fp16_full_eval": Lost("an evaluation computes in the precision of the training"),
    "neftune_noise_alpha": Handled("plugin neftune, alpha"),
    "label_smoothing_factor": Handled("plugin loss, label_smoothing"),
    "use_liger_kernel": Handled("plugin liger"),
    "use_liger": Handled("plugin liger"),
    "liger_kernel_config": Handled("options of plugin liger"),
    "half_precision_backend": Always("mixed precision is always that of torch"),
    "fp16_backend": Always("mixed precision is always that of torch"),
    "fp16_opt_level": _GONE,
    **dict.fromkeys(("tpu_num_cores", "tpu_metrics_debug", "mp_parameters", "jit_mode_eval", "use_ipex"), _GONE),
    **dict.fromkeys(("past_index", "torchdynamo", "ray_scope", "dispatch_batches", "split_batches"), _GONE),
    **dict.fromkeys(("eval_do_concat_batches", "eval_use_gather_object", "include_inputs_for_metrics"), _METRICS),
    **dict.fromkeys(("eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics"), _METRICS),
}
#: Values that do nothing unless another one asks for something, which the other tools accept silently.
NEEDS = {
    **dict.fromkeys(("eval_steps", "eval_delay", "metric_for_best_model"), "eval_strategy"),
    "greater_is_better": "metric_for_best_model",
    **dict.fromkeys(("hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push"), "push_to_hub"),
    "hub_revision": "push_to_hub",
    "gradient_checkpointing_kwargs": "gradient_checkpointing",
    "dataloader_prefetch_factor": "dataloader_num_workers",
    "dataloader_persistent_workers": "dataloader_num_workers",
}
_RENAMED_OPTIMIZERS = {"adamw_hf": "adamw_torch", "adamw_apex_fused": "adamw_torch_fused"}
_FLASH = ("flash_attention_2", "flash_attention_3", "fa2", "fa3", "kernels-community/flash-attn")
FLASH_NOTE = "the plugin chooses the best kernel that is installed"


def training_rules() -> dict[str, Rule]:
    """The rules of all fields of `TrainingArguments`, of this and of earlier versions."""
    from sftkit.api import allowed_fields

    return {**{name: To(f"train.{name}") for name in allowed_fields()}, **OWN}


def training(t: Translation, places: Places) -> None:
    """The fields of `TrainingArguments` that become plugins or need thought."""
    warmup(t)
    optimizer(t, "optim")
    switched(t, "group_by_length", "train.train_sampling_strategy", "group_by_length")
    trained_at_all = t.get("do_train", True)
    if t.pending("do_train") and not trained_at_all:
        t.move("do_train", "train.max_steps", 0, "the run only evaluates")
    elif t.pending("do_train"):
        t.always("do_train", "a run trains")
    engines.deepspeed(t, places)
    engines.fsdp(t, places)
    positive(t, "neftune_noise_alpha", "neftune", "alpha", "the noise is scaled by the length of each document")
    positive(t, "label_smoothing_factor", "loss", "label_smoothing")
    for key in ("use_liger_kernel", "use_liger"):
        if t.pending(key) and t.get(key):
            t.select("liger")
            t.translated(key, "plugins.liger")
        elif t.pending(key):
            t.always(key, "it switches the kernels off")
    if t.pending("liger_kernel_config") and t.selected("liger"):
        t.select("liger", **dict(t.get("liger_kernel_config")))
        t.translated("liger_kernel_config", "plugins.liger")
    elif t.pending("liger_kernel_config"):
        t.always("liger_kernel_config", "it does nothing without use_liger_kernel")


def warmup(t: Translation) -> None:
    """Steps win over a ratio, as in transformers; a fraction below 1 is one of all steps."""
    steps = float(t.get("warmup_steps", 0))
    if t.pending("warmup_steps") and (steps or not t.get("warmup_ratio")):
        t.move("warmup_steps", "train.warmup_steps", int(steps) if steps >= 1 else steps)
        if t.pending("warmup_ratio"):
            t.always("warmup_ratio", "warmup_steps overrides it")
        return
    if t.pending("warmup_steps"):
        t.always("warmup_steps", "warmup_ratio is used")
    if t.pending("warmup_ratio"):
        t.move("warmup_ratio", "train.warmup_steps", float(t.get("warmup_ratio")), "a fraction of all steps")


def optimizer(t: Translation, key: str) -> None:
    """The optimizer, if transformers has one of this name."""
    from typing import get_args

    from sftkit.api import allowed_fields

    name = t.get(key)
    if not t.pending(key):
        return
    known = get_args(allowed_fields()["optim"].annotation)
    name = _RENAMED_OPTIMIZERS.get(str(name), str(name))
    if name in known:
        note = "the old name is gone in transformers 5" if name != t.get(key) else ""
        t.move(key, "train.optim", name, note)
    else:
        fix = "plugin muon, whose updates have another scale" if name == "muon" else "set train.optim"
        t.lose(key, f"transformers has no optimizer {name!r}", f"{fix}; AdamW is used without it")


def switched(t: Translation, key: str, target: str, value: Any) -> None:
    """A key that is true or false, and sets one value if it is true."""
    if t.pending(key) and t.get(key):
        t.move(key, target, value)
    elif t.pending(key):
        t.always(key, "it is off")


def positive(t: Translation, key: str, plugin: str, option: str, note: str = "") -> None:
    """A number that selects a plugin if it is above 0."""
    if t.pending(key) and t.get(key):
        t.select(plugin)
        t.move(key, f"plugins.{plugin}.{option}", note=note)
    elif t.pending(key):
        t.always(key, "it is off")


def attention(t: Translation, key: str, name: Any) -> None:
    """The implementation of attention, which changes the speed of a run and not its result."""
    name = str(name)
    if any(name.startswith(flash) for flash in _FLASH):
        t.select("flash_attn")
        t.translated(key, "plugins.flash_attn", FLASH_NOTE)
    elif name in ("flex_attention", "flex"):
        t.select("flash_attn", implementation="flex")
        t.translated(key, "plugins.flash_attn.implementation")
    elif name in ("sdpa", "eager"):
        t.put("model.options.attn_implementation", name, key)
        t.translated(key, "model.options.attn_implementation")
    else:
        t.lose(key, f"there is no attention {name!r}", "sdpa is used; `-p flash_attn` is faster on a GPU")


def early_stopping(t: Translation, key: str) -> None:
    """The number of evaluations without a better value after which a run stops."""
    if not t.pending(key):
        return
    if not t.get(key):
        t.always(key, "it is off")
    elif not t.has("data.eval") or _argument(t, "eval_strategy", "no") == "no":
        fix = "set data.eval, and evaluate: {every: 100, best: eval_loss, patience: 3}"
        t.lose(key, "nothing is evaluated during the training", fix)
    elif other := _other_saves(t):
        fix = f"remove {' and '.join(other)}, and set evaluate: {{best: eval_loss, patience: {t.get(key)}}}"
        t.lose(key, "its checkpoints are those of the evaluations", fix)
    else:
        metric = str(_argument(t, "metric_for_best_model", "eval_loss"))
        best = metric if metric.startswith("eval_") else f"eval_{metric}"
        t.put("evaluate.best", best, t.sources.get("train.metric_for_best_model") or key)
        t.put("evaluate.patience", t.get(key), key)
        t.translated(key, "evaluate.patience", f"a checkpoint is saved at each evaluation; the best by {best} is kept")


def _argument(t: Translation, name: str, default: Any = None) -> Any:
    """A training argument that is translated already, or will be under the same name."""
    value = t.value(f"train.{name}", t.get(name))
    return default if value is None else value


def _other_saves(t: Translation) -> list[str]:
    """When the file saves checkpoints, if that is not when it evaluates; drops what is only a default of the tool."""
    found = []
    for save, evaluation in (("save_strategy", "eval_strategy"), ("save_steps", "eval_steps")):
        target, value = f"train.{save}", _argument(t, save)
        if value is not None and value != _argument(t, evaluation):
            if target in t.defaults:
                t.drop(target)
            else:
                found.append(target)
    return found


def variable(t: Translation, key: str, name: str) -> None:
    """A setting of a tracker, which the tracker reads from the environment."""
    if t.pending(key):
        fix = f"export {name}={shown(key, t.get(key))}"
        t.lose(key, "trackers read it from the environment", fix)


def dtype_name(value: Any) -> str | None:
    """The name of a dtype that ``model.dtype`` takes; None for others."""
    names = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}
    name = str(value).removeprefix("torch.")
    name = names.get(name, name)
    return name if name in ("auto", "bfloat16", "float16", "float32") else None


def prune(t: Translation) -> None:
    """Remove values that do nothing, which sftkit refuses and the other tools accept."""
    if t.value("data.eval") is None:
        for name in ("eval_strategy", "eval_on_start", "load_best_model_at_end", "metric_for_best_model"):
            _withdraw(t, f"train.{name}", "there is no evaluation data", "set data.eval, then this key in train")
    for name, needed in NEEDS.items():
        asked = t.value(f"train.{needed}")
        if not asked or asked == "no":
            _withdraw(t, f"train.{name}", f"it does nothing without {needed}")
    if t.value("train.save_strategy") not in (None, "steps"):
        _withdraw(t, "train.save_steps", "it does nothing: checkpoints are not saved by steps")
    if t.value("train.bf16") and t.value("train.fp16"):
        _withdraw(t, "train.fp16", "bf16 is used")
    engines.mixed_precision(t)


def _withdraw(t: Translation, target: str, reason: str, fix: str = "") -> None:
    if not t.has(target):
        return
    value, source = t.value(target), t.sources.get(target, "")
    t.drop(target)
    keys = [key for key, entry in t.entries.items() if entry.target == target or key == source]
    for key in keys:
        del t.entries[key]
        if fix and value not in (False, "no"):
            t.lose(key, reason, fix)
        else:
            t.always(key, reason)
