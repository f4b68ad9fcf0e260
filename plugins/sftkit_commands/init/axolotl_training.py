"""Axolotl's batches, schedule, checkpoints, evaluation, trackers and processes."""

from __future__ import annotations

from sftkit_commands.init import engines, hf
from sftkit_commands.init.local import Places
from sftkit_commands.init.translation import Translation

_VARIABLES = {
    **{
        f"wandb_{name}": f"WANDB_{name.upper()}"
        for name in ("project", "entity", "watch", "log_model", "mode", "run_id")
    },
    "mlflow_tracking_uri": "MLFLOW_TRACKING_URI",
    "mlflow_experiment_name": "MLFLOW_EXPERIMENT_NAME",
    "hf_mlflow_log_artifacts": "HF_MLFLOW_LOG_ARTIFACTS",
    **{f"comet_{name}": f"COMET_{name.upper()}" for name in ("api_key", "workspace", "project_name", "mode")},
}


def batches(t: Translation) -> None:
    """Packing, and how many rows a step has."""
    evaluates, packs = t.has("data.eval"), t.get("sample_packing") or t.get("pretraining_sample_concatenation")
    if packs:
        t.select("packing", strategy=None if t.get("sample_packing") else "wrapped")
        if t.get("sample_packing"):
            t.translated("sample_packing", "plugins.packing")
        else:
            t.translated("pretraining_sample_concatenation", "plugins.packing.strategy")
        if evaluates and t.get("eval_sample_packing", True):
            t.put("plugins.packing.eval", True, "eval_sample_packing")
            t.translated("eval_sample_packing", "plugins.packing.eval")
    for key in ("sample_packing", "pretraining_sample_concatenation", "eval_sample_packing"):
        if t.pending(key):
            t.always(key, "it is off" if not t.get(key) else "it does nothing here")
    hf.switched(t, "curriculum_sampling", "train.train_sampling_strategy", "sequential")
    hf.switched(t, "group_by_length", "train.train_sampling_strategy", "group_by_length")
    micro = int(t.get("micro_batch_size", 1))
    steps = t.get("gradient_accumulation_steps")
    if steps is not None:
        t.move("gradient_accumulation_steps", "train.gradient_accumulation_steps", int(steps))
        t.always("batch_size", "gradient_accumulation_steps and micro_batch_size are set")
    elif t.get("batch_size"):
        t.move("batch_size", "train.gradient_accumulation_steps", max(int(t.get("batch_size")) // micro, 1))
    if "micro_batch_size" not in t.given:
        t.default("train.per_device_train_batch_size", 1)
    if evaluates and "eval_batch_size" not in t.given:
        t.default("train.per_device_eval_batch_size", micro)


def schedule(t: Translation) -> None:
    """Optimizer, warm-up and decay."""
    hf.optimizer(t, "optimizer")
    args = t.get("optim_args")
    if t.pending("optim_args") and args and t.has("train.optim"):
        text = ",".join(f"{k}={v}" for k, v in args.items()) if isinstance(args, dict) else str(args)
        t.move("optim_args", "train.optim_args", text)
    elif t.pending("optim_args"):
        t.lose("optim_args", "they belong to an optimizer that transformers does not have")
    targets = t.get("optim_target_modules")
    t.move("optim_target_modules", "train.optim_target_modules", "all-linear" if targets == "all_linear" else None)
    _warmup(t)
    name, from_schedule = str(t.get("lr_scheduler", "cosine")), t.get("lr_scheduler_kwargs") or {}
    if name in ("one_cycle", "rex", "log_sweep", "quadratic"):
        t.lose("lr_scheduler", f"transformers has no schedule {name!r}", "set train.lr_scheduler_type; cosine is used")
        t.put("train.lr_scheduler_type", "cosine", "lr_scheduler")
    elif t.get("cosine_min_lr_ratio") and name == "cosine":
        t.move("cosine_min_lr_ratio", "train.lr_scheduler_kwargs", {"min_lr_rate": float(t.get("cosine_min_lr_ratio"))})
        t.put("train.lr_scheduler_type", "cosine_with_min_lr", "cosine_min_lr_ratio")
        t.translated("lr_scheduler", "train.lr_scheduler_type")
    elif "lr_scheduler" in t.given:
        t.move("lr_scheduler", "train.lr_scheduler_type")
    t.default("train.lr_scheduler_type", "cosine")
    if t.pending("cosine_min_lr_ratio"):
        t.always("cosine_min_lr_ratio", "it is 0, or the schedule is not cosine")
    if t.pending("lr_scheduler_kwargs") and from_schedule and not t.has("train.lr_scheduler_kwargs"):
        t.move("lr_scheduler_kwargs", "train.lr_scheduler_kwargs")
    elif t.pending("lr_scheduler_kwargs"):
        t.always("lr_scheduler_kwargs", "it is empty, or cosine_min_lr_ratio is used")


def _warmup(t: Translation) -> None:
    """Axolotl warms up for 3 % of the steps, at most 100, and for 2 steps if 1 is asked for."""
    total = int(t.get("max_steps", 0))
    if t.get("warmup_steps") is not None:
        steps = int(t.get("warmup_steps"))
        note = "Axolotl makes 2 steps of 1" if steps == 1 else ""
        t.move("warmup_steps", "train.warmup_steps", 2 if steps == 1 else steps, note)
        t.always("warmup_ratio", "warmup_steps overrides it")
    elif t.get("warmup_ratio") is not None:
        ratio = float(t.get("warmup_ratio"))
        steps = int(ratio * total)
        t.move("warmup_ratio", "train.warmup_steps", (2 if steps == 1 else steps) if total > 0 else ratio)
    elif total > 0:
        steps = min(int(0.03 * total), 100)
        t.default("train.warmup_steps", 2 if steps == 1 else steps)
    else:
        t.default("train.warmup_steps", 0.03)


def _share(t: Translation, key: str) -> float | None:
    """A number per epoch as a fraction of all steps; None if that is not below 1, which Axolotl ignores."""
    times, epochs = t.get(key), float(t.get("num_epochs", 1))
    if not times or 1 / (float(times) * epochs) >= 1:
        return None
    return round(1 / (float(times) * epochs), 6)


def saving(t: Translation) -> None:
    """When checkpoints are saved: each epoch unless something else is asked for."""
    share = _share(t, "saves_per_epoch")
    if share is not None:
        t.put("train.save_strategy", "steps", "saves_per_epoch")
        t.move("saves_per_epoch", "train.save_steps", share, "a fraction of all steps")
        t.always("save_steps", "saves_per_epoch overrides it")
        t.always("save_strategy", "saves_per_epoch overrides it")
    elif t.get("save_steps"):
        t.put("train.save_strategy", "steps", "save_steps")
        t.move("save_steps", "train.save_steps")
        t.always("save_strategy", "save_steps overrides it")
    elif t.get("save_strategy") is not None:
        t.move("save_strategy", "train.save_strategy", "no" if t.get("save_strategy") is False else None)
    for key in ("saves_per_epoch", "save_steps"):
        if t.pending(key):
            t.always(key, "once per run is what a run does at its end")
    t.default("train.save_strategy", "epoch")
    if "save_total_limit" not in t.given:
        t.default("train.save_total_limit", 4)


def evaluating(t: Translation) -> None:
    """When the model is evaluated, and whether the best one is kept."""
    share, steps = _share(t, "evals_per_epoch"), t.get("eval_steps")
    strategy = t.get("eval_strategy", t.get("evaluation_strategy"))
    strategy_key = "eval_strategy" if "eval_strategy" in t.given else "evaluation_strategy"
    if share is not None:
        t.move("evals_per_epoch", "train.eval_steps", share, "a fraction of all steps")
    elif steps:
        t.move("eval_steps", "train.eval_steps")
    if share is not None or steps:
        t.put("train.eval_strategy", "steps", "evals_per_epoch" if share is not None else "eval_steps")
        t.default("train.eval_on_start", True)
    elif strategy:
        t.move(strategy_key, "train.eval_strategy")
        t.default("train.eval_on_start", True)
    for key in ("evals_per_epoch", "eval_steps", "eval_strategy", "evaluation_strategy"):
        if t.pending(key):
            t.always(key, "it is off, or another key overrides it")
    patience, best = t.get("early_stopping_patience"), t.get("load_best_model_at_end")
    ratio = float(t.value("train.save_steps") or 0) / float(t.value("train.eval_steps") or 1)
    fits = t.has("data.eval") and ratio and abs(ratio - round(ratio)) < 1e-6 and round(ratio) >= 1
    if fits and (best or patience):
        t.put("train.load_best_model_at_end", True, "load_best_model_at_end" if best else "early_stopping_patience")
        t.translated("load_best_model_at_end", "train.load_best_model_at_end")
    elif t.pending("load_best_model_at_end") and best:
        t.lose(
            "load_best_model_at_end",
            "save_steps is no multiple of eval_steps, so Axolotl ignores it",
            "set both, then train.load_best_model_at_end",
        )
    elif t.pending("load_best_model_at_end"):
        t.always("load_best_model_at_end", "it is off")
    hf.early_stopping(t, "early_stopping_patience")
    _samples(t)


def _samples(t: Translation) -> None:
    keys = {"num_generation_samples": "rows", "generation_max_new_tokens": "max_new_tokens"}
    if t.get("generate_samples") and t.has("data.eval"):
        t.select("samples")
        t.translated("generate_samples", "plugins.samples", "before and after training, greedily")
        for key, option in keys.items():
            t.move(key, f"plugins.samples.{option}")
    elif t.get("generate_samples"):
        t.lose("generate_samples", "samples are of held-out rows", "set data.eval, and select plugin samples")
    for key in ("generate_samples", *keys):
        if t.pending(key):
            t.always(key, "no samples are generated")


def trackers(t: Translation) -> None:
    """Trackers, their run's name, and what they read from the environment."""
    used = [
        name
        for name, key in (
            ("wandb", "use_wandb"),
            ("mlflow", "use_mlflow"),
            ("tensorboard", "use_tensorboard"),
            ("comet_ml", "use_comet"),
            ("trackio", "use_trackio"),
        )
        if t.get(key) or (name == "wandb" and t.get("wandb_project") and t.get(key) is not False)
    ]
    if used:
        t.put("train.report_to", used, "use_...")
    for key in ("use_wandb", "use_mlflow", "use_tensorboard", "use_comet", "use_trackio"):
        if t.get(key):
            t.translated(key, "train.report_to")
        elif t.pending(key):
            t.always(key, "it is off")
    named = {"wandb": "wandb_name", "mlflow": "mlflow_run_name", "trackio": "trackio_run_name"}
    first = next((key for tool, key in named.items() if tool in used and t.get(key)), None)
    for key in [key for key in named.values() if t.pending(key)]:
        if key == first:
            t.move(key, "train.run_name")
        else:
            t.always(key, "its tracker is not used")
    for key, name in _VARIABLES.items():
        if key.split("_")[0] in ("wandb", "mlflow", "hf", "comet") and t.pending(key):
            tool = {"hf": "mlflow", "comet": "comet_ml"}.get(key.split("_")[0], key.split("_")[0])
            if tool in used and t.get(key) not in ("", False):
                hf.variable(t, key, name)
            else:
                t.always(key, "its tracker is not used, or it is empty")


def processes(t: Translation, places: Places) -> None:
    """Hub, DeepSpeed and FSDP."""
    if t.get("hub_model_id"):
        t.move("hub_model_id", "train.hub_model_id")
        t.put("train.push_to_hub", True, "hub_model_id")
        t.default("train.hub_private_repo", True)
        t.default("train.hub_always_push", True)
    engines.deepspeed(t, places)
    engines.fsdp(t, places)
    engines.tensor_parallel(t, "tensor_parallel_size")
    if t.pending("dp_shard_size") and int(t.get("dp_shard_size", 1)) > 1:
        t.select("fsdp")
        t.translated("dp_shard_size", "plugins.fsdp", "all processes share one copy")
    elif t.pending("dp_shard_size"):
        t.always("dp_shard_size", "it is off")
    if t.pending("hub_model_id"):
        t.always("hub_model_id", "it is off")


def defaults(t: Translation) -> None:
    """Values of Axolotl that differ from those of sftkit, where the file says nothing."""
    for target, key, value in (
        ("train.num_train_epochs", "num_epochs", 1.0),
        ("train.output_dir", "output_dir", "./model-out"),
    ):
        if t.get(key) is None:
            t.default(target, value)
    if t.get("logging_steps") is None and int(t.get("max_steps", 0)) > 0:
        t.default("train.logging_steps", max(min(int(0.005 * int(t.get("max_steps"))), 10), 1))
