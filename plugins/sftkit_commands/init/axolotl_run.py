"""What of Axolotl's keys needs thought: model, adapter, precision, schedule, saving, trackers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sftkit_commands.init import axolotl, axolotl_data, hf
from sftkit_commands.init.axolotl import INSIDE, RULES
from sftkit_commands.init.local import Places
from sftkit_commands.init.translation import Lost, Translation, flatten

_PEFT_OPTIONS = {
    "lora_modules_to_save": "modules_to_save",
    "lora_fan_in_fan_out": "fan_in_fan_out",
    "lora_rank_pattern": "rank_pattern",
    "lora_alpha_pattern": "alpha_pattern",
    "peft_layers_to_transform": "layers_to_transform",
    "peft_layers_pattern": "layers_pattern",
    "peft_use_dora": "use_dora",
    "peft_use_rslora": "use_rslora",
    "peft_layer_replication": "layer_replication",
    "peft_init_lora_weights": "init_lora_weights",
    "peft_trainable_token_indices": "trainable_token_indices",
    "peft_ensure_weight_tying": "ensure_weight_tying",
}
_PLAIN_OPTIONS = {
    "lora_r": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_target_parameters": "target_parameters",
}
_ADAPTER_KEYS = (
    *_PLAIN_OPTIONS,
    *_PEFT_OPTIONS,
    "lora_target_modules",
    "lora_target_linear",
    "peft.loftq_config.loftq_bits",
)
_BNB_OPTIONS = {
    "bnb_4bit_quant_type": "quant_type",
    "bnb_4bit_use_double_quant": "double_quant",
    "bnb_4bit_compute_dtype": "compute_dtype",
    "bnb_4bit_quant_storage": "quant_storage",
    "llm_int8_threshold": "threshold",
    "llm_int8_skip_modules": "skip_modules",
}
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
_LIGER_OPTIONS = {
    "liger_rope": ("rope",),
    "liger_rms_norm": ("rms_norm",),
    "liger_glu_activation": ("swiglu", "geglu"),
    "liger_swiglu": ("swiglu",),
    "liger_layer_norm": ("layer_norm",),
}


def translate(values: dict[str, Any], places: Places) -> Translation:
    """The translation of a configuration of Axolotl."""
    t = Translation(axolotl.NAME, flatten(values, INSIDE))
    t.blank(RULES)
    model(t, places)
    axolotl_data.data(t, places)
    length(t)
    adapter(t)
    precision(t)
    memory(t)
    kernels(t)
    batches(t)
    schedule(t)
    saving(t)
    evaluating(t)
    trackers(t)
    processes(t, places)
    tokens(t)
    hf.positive(t, "neftune_noise_alpha", "neftune", "alpha", "the noise is scaled by the length of each document")
    hf.positive(t, "noisy_embedding_alpha", "neftune", "alpha", "the noise is scaled by the length of each document")
    axolotl_data.rest(t)
    t.apply(RULES)
    t.apply({key: Lost("plugins of Axolotl cannot be used") for key in t.given if re.fullmatch(r"plugins\[\d+\]", key)})
    defaults(t)
    hf.prune(t)
    return t.finish()


def model(t: Translation, places: Places) -> None:
    """The model, its tokenizer and its options."""
    adapter_dir = t.get("lora_model_dir")
    if adapter_dir:
        t.move("lora_model_dir", "model.name", places.name(str(adapter_dir)))
        t.always("base_model", "the directory of the adapter names it")
    elif t.get("base_model"):
        t.move("base_model", "model.name", places.name(str(t.get("base_model"))))
    if t.get("base_model_config", t.get("base_model")) == t.get("base_model"):
        t.always("base_model_config", "it is the base model")
    else:
        t.lose("base_model_config", "the configuration is read from the model", "set model.options")
    if t.get("tokenizer_config", t.get("base_model")) == t.get("base_model"):
        t.always("tokenizer_config", "it is the base model's")
    else:
        t.move("tokenizer_config", "model.tokenizer", places.name(str(t.get("tokenizer_config"))))
    for key in ("overrides_of_model_config", "overrides_of_model_kwargs"):
        if t.get(key):
            t.put("model.options", {**(t.value("model.options") or {}), **t.get(key)}, key)
            t.translated(key, "model.options")
        elif t.pending(key):
            t.always(key, "it is empty")
    hf.switched(t, "reinit_weights", "model.init", "random")


def length(t: Translation) -> None:
    """Rows that are too long: Axolotl drops them unless it is told otherwise."""
    strategies = {"drop": "drop", "truncate": "keep_start", "raise": "error"}
    t.default("data.max_length", 512) if "sequence_len" not in t.given else None
    if t.get("excess_length_strategy") in strategies:
        t.move("excess_length_strategy", "data.truncation", strategies[t.get("excess_length_strategy")])
    elif t.pending("excess_length_strategy"):
        t.lose("excess_length_strategy", "unknown value", "set data.truncation to keep_start, drop or error")
    t.default("data.truncation", "drop")


def adapter(t: Translation) -> None:
    """LoRA, with a base in 4 or 8 bits, or full fine-tuning."""
    kind = t.get("adapter")
    further = bool(t.get("lora_model_dir"))
    if kind in ("lora", "qlora") and not further:
        t.translated("adapter", "plugins.peft")
        _lora(t)
    elif kind in ("lora", "qlora"):
        t.translated("adapter", "model.name", "the adapter keeps its own options")
    elif t.pending("adapter"):
        t.lose("adapter", f"there is no adapter {kind!r}", "plugin peft has other methods: peft: {method: ...}")
    for key in [key for key in _ADAPTER_KEYS if t.pending(key)]:
        t.always(key, "the adapter keeps its own" if further else "it does nothing without an adapter")
    bits = {"load_in_4bit": 4, "load_in_8bit": 8}
    for key in [key for key in bits if t.pending(key)]:
        if t.get(key) and not t.selected("bitsandbytes"):
            t.select("bitsandbytes", bits=bits[key])
            t.translated(key, "plugins.bitsandbytes.bits")
        else:
            t.always(key, "it is off" if not t.get(key) else "4 bits are used")
    options = t.get("bnb_config_kwargs") or {}
    strange = [name for name in options if name not in _BNB_OPTIONS]
    if not t.selected("bitsandbytes"):
        t.always("bnb_config_kwargs", "nothing is quantized")
    elif strange:
        t.lose("bnb_config_kwargs", f"no option for {', '.join(strange)}", "see the options of plugin bitsandbytes")
    elif t.pending("bnb_config_kwargs"):
        t.select("bitsandbytes", **{_BNB_OPTIONS[name]: value for name, value in options.items()})
        t.translated("bnb_config_kwargs", "plugins.bitsandbytes")


def _lora(t: Translation) -> None:
    t.select("peft")
    for key, option in _PLAIN_OPTIONS.items():
        t.move(key, f"plugins.peft.{option}")
    t.default("plugins.peft.dropout", 0.0) if False else None
    modules, linear = t.get("lora_target_modules"), t.get("lora_target_linear")
    if linear:
        t.move("lora_target_linear", "plugins.peft.target_modules", "all-linear")
        t.always("lora_target_modules", "all linear layers are adapted")
    else:
        t.always("lora_target_linear", "it is off")
        t.move("lora_target_modules", "plugins.peft.target_modules")
    for key, option in _PEFT_OPTIONS.items():
        if t.get(key) not in (None, False, [], {}):
            t.move(key, f"plugins.peft.options.{option}")
        else:
            t.always(key, "it is off")
    if t.get("peft.loftq_config.loftq_bits"):
        t.move(
            "peft.loftq_config.loftq_bits",
            "plugins.peft.options.loftq_config",
            {"loftq_bits": t.get("peft.loftq_config.loftq_bits")},
        )
        t.put("plugins.peft.options.init_lora_weights", "loftq", "peft.loftq_config")


def precision(t: Translation) -> None:
    """bf16 or fp16; Axolotl loads the weights in the same precision, also for full fine-tuning."""
    half = "bf16" if t.get("bf16", "auto") not in (False, "auto") or t.get("bfloat16") else ""
    half = half or ("fp16" if t.get("fp16") or t.get("float16") else "")
    automatic = not half and t.get("bf16", "auto") == "auto"
    note = "on a GPU without bfloat16, set train.fp16 instead" if automatic else ""
    if automatic or half == "bf16":
        t.put("train.bf16", True, "bf16" if "bf16" in t.given or "bfloat16" in t.given else f"default of {t.peer}")
        t.default("model.dtype", "bfloat16")
        for key in [key for key in ("bf16", "bfloat16") if t.pending(key)]:
            full = t.get(key) == "full"
            remark = "evaluations compute in the precision of the training" if full else note
            t.translated(key, "train.bf16", remark) if t.get(key) else t.always(key, "it is off")
    elif half == "fp16":
        t.put("train.fp16", True, "fp16")
    for key in [key for key in ("fp16", "float16") if t.pending(key)]:
        if half == "fp16" and t.get(key):
            t.translated(key, "train.fp16", "the weights are float32: float16 ones cannot be trained with fp16")
        else:
            t.always(key, "it is off" if not t.get(key) else "bf16 is used")
    for key in [key for key in ("bf16", "bfloat16") if t.pending(key)]:
        t.always(key, "it is off")
    if t.pending("tf32"):
        t.move("tf32", "train.tf32", True) if t.get("tf32") is True else t.always("tf32", "it is off")


def memory(t: Translation) -> None:
    """Checkpointing and offloading of activations."""
    kind, offload = t.get("gradient_checkpointing"), t.get("activation_offloading")
    if offload or kind in ("offload", "offload_disk", "unsloth"):
        t.select("activations", checkpointing="full", offload=True)
        note = "to the memory of the host" if offload in ("disk", "legacy") or kind == "offload_disk" else ""
        t.translated("activation_offloading", "plugins.activations.offload", note) if offload else None
        if kind:
            t.translated("gradient_checkpointing", "plugins.activations.checkpointing", note)
    elif kind and kind is not True:
        t.lose("gradient_checkpointing", f"unknown value {kind!r}", "train.gradient_checkpointing: true")
    elif kind and t.get("selective_checkpointing"):
        t.select("activations", checkpointing="selective")
        t.translated("gradient_checkpointing", "plugins.activations.checkpointing")
        t.translated(
            "selective_checkpointing", "plugins.activations.checkpointing", "what is kept is chosen by the plugin"
        )
    elif kind:
        t.move("gradient_checkpointing", "train.gradient_checkpointing")
        t.default("train.gradient_checkpointing_kwargs", {"use_reentrant": False}) if not t.get(
            "gradient_checkpointing_kwargs"
        ) else None
    on = t.has("train.gradient_checkpointing")
    if on and t.get("gradient_checkpointing_kwargs"):
        t.move("gradient_checkpointing_kwargs", "train.gradient_checkpointing_kwargs")
    for key in (
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "activation_offloading",
        "selective_checkpointing",
    ):
        if t.pending(key):
            t.always(key, "it is off, or does nothing without gradient_checkpointing")


def kernels(t: Translation) -> None:
    """Attention, Liger, compilation, and Axolotl's own plugins."""
    for key, name in (
        ("flash_attention", "flash_attention_2"),
        ("sdp_attention", "sdpa"),
        ("eager_attention", "eager"),
        ("flex_attention", "flex"),
    ):
        if t.pending(key) and t.get(key):
            hf.attention(t, key, name)
        elif t.pending(key):
            t.always(key, "it is off")
    if t.pending("attn_implementation"):
        hf.attention(t, "attn_implementation", t.get("attn_implementation"))
    if t.pending("batch_flattening") and t.get("batch_flattening"):
        t.select("flash_attn")
        t.translated("batch_flattening", "plugins.flash_attn")
    elif t.pending("batch_flattening"):
        t.always("batch_flattening", "it is off")
    for key in [key for key in t.given if re.fullmatch(r"plugins\[\d+\]", key)]:
        _plugin(t, key, str(t.get(key)).rsplit(".", 1)[-1])
    _liger(t)
    compiled = t.get("torch_compile")
    for key in [key for key in ("torch_compile", "torch_compile_backend", "torch_compile_mode") if t.pending(key)]:
        if compiled:
            t.move(key, f"train.{key}", True if key == "torch_compile" else None)
        else:
            t.always(key, "nothing is compiled")


def _plugin(t: Translation, key: str, name: str) -> None:
    if name == "LigerPlugin":
        t.select("liger")
        t.translated(key, "plugins.liger")
    elif name == "CutCrossEntropyPlugin":
        t.always(key, "logits are always computed chunk by chunk, for trained tokens only")


def _liger(t: Translation) -> None:
    """Kernels that are asked for are those that Liger selects by itself; others are switched off."""
    for key, options in _LIGER_OPTIONS.items():
        if t.pending(key) and not t.selected("liger"):
            t.always(key, "it does nothing without Axolotl's LigerPlugin")
        elif t.pending(key) and t.get(key):
            t.translated(key, "plugins.liger")
        elif t.pending(key):
            t.select("liger", **dict.fromkeys(options, False))
            t.translated(key, f"plugins.liger.{options[0]}")
    for key, option in (
        ("liger_cross_entropy", "cross_entropy"),
        ("liger_fused_linear_cross_entropy", "fused_linear_cross_entropy"),
    ):
        if t.pending(key) and t.selected("liger"):
            t.move(key, f"plugins.liger.{option}")
        elif t.pending(key):
            t.always(key, "it does nothing without Axolotl's LigerPlugin")


def batches(t: Translation) -> None:
    """Packing, and how many rows a step has."""
    evaluates, packs = t.has("data.eval"), t.get("sample_packing") or t.get("pretraining_sample_concatenation")
    if packs:
        t.select("packing", strategy=None if t.get("sample_packing") else "wrapped")
        t.translated("sample_packing", "plugins.packing") if t.get("sample_packing") else None
        t.translated("pretraining_sample_concatenation", "plugins.packing.strategy") if not t.get(
            "sample_packing"
        ) else None
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
    t.default("train.per_device_train_batch_size", 1) if "micro_batch_size" not in t.given else None
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
    if t.pending("loraplus_lr_embedding"):
        t.always("loraplus_lr_embedding", "it does nothing without loraplus_lr_ratio")


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
    if patience:
        t.lose("early_stopping_patience", hf.STOPS_EARLY, hf.STOPS_EARLY_FIX.format(patience))
    elif t.pending("early_stopping_patience"):
        t.always("early_stopping_patience", "it is off")
    _samples(t)


def _samples(t: Translation) -> None:
    keys = {"num_generation_samples": "shown", "generation_max_new_tokens": "max_new_tokens"}
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
        t.move(key, "train.run_name") if key == first else t.always(key, "its tracker is not used")
    for key, name in _VARIABLES.items():
        if key.split("_")[0] in ("wandb", "mlflow", "hf", "comet") and t.pending(key):
            tool = {"hf": "mlflow", "comet": "comet_ml"}.get(key.split("_")[0], key.split("_")[0])
            hf.variable(t, key, name) if tool in used and t.get(key) not in ("", False) else t.always(
                key, "its tracker is not used, or it is empty"
            )


def processes(t: Translation, places: Places) -> None:
    """Hub, DeepSpeed and FSDP."""
    if t.get("hub_model_id"):
        t.move("hub_model_id", "train.hub_model_id")
        t.put("train.push_to_hub", True, "hub_model_id")
        t.default("train.hub_private_repo", True)
        t.default("train.hub_always_push", True)
    hf.deepspeed(t, places)
    config, shards = t.get("fsdp_config") or {}, t.get("fsdp")
    if config or shards:
        plain = {re.sub(r"^fsdp_", "", str(name)): value for name, value in config.items()}
        plain |= {"version": t.get("fsdp_version")} if t.get("fsdp_version") else {}
        t.put("train.fsdp", " ".join(shards) if isinstance(shards, list) else "full_shard auto_wrap", "fsdp")
        t.translated("fsdp", "train.fsdp")
        if plain:
            t.put("train.fsdp_config", plain, "fsdp_config")
        t.translated("fsdp_config", "train.fsdp_config")
        t.translated("fsdp_version", "train.fsdp_config")
    for key in ("fsdp", "fsdp_config", "fsdp_version", "hub_model_id"):
        if t.pending(key):
            t.always(key, "it is off")


def tokens(t: Translation) -> None:
    """Tokens that are added, and special ones that are set."""
    chat = t.value("plugins.chatml")
    ends = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}.get(str((chat or {}).get("template", "")))
    added = [*t.get("tokens", []), *t.get("special_tokens.additional_special_tokens", [])]
    for key in ("tokens", "special_tokens.additional_special_tokens"):
        if t.pending(key) and t.get(key) and chat is not None:
            t.select("chatml", tokens=list(dict.fromkeys(added)))
            t.translated(key, "plugins.chatml.tokens")
        elif t.pending(key) and t.get(key):
            t.lose(
                key,
                "tokens are added with a chat template only",
                "add them to the tokenizer, save it, and name it in model.tokenizer",
            )
        elif t.pending(key):
            t.always(key, "it is empty")
    for name in ("eos", "bos", "unk"):
        key = f"special_tokens.{name}_token"
        if t.pending(key) and name == "eos" and t.get(key) == ends:
            t.always(key, "the token that ends answers in the template becomes EOS")
        elif t.pending(key):
            t.lose(
                key,
                "the tokenizer keeps its own, if it is another one",
                "set it in the tokenizer, save it, and name it in model.tokenizer",
            )
    if t.pending("resize_token_embeddings_to_32x") and t.get("resize_token_embeddings_to_32x") and chat is not None:
        t.move("resize_token_embeddings_to_32x", "plugins.chatml.pad_to_multiple_of", 32)
    elif t.pending("resize_token_embeddings_to_32x"):
        t.always("resize_token_embeddings_to_32x", "no rows are added, or it is off")


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


def base_directory(path: Path) -> Path:
    """Where the relative paths of a configuration may begin, besides the working directory."""
    return path.parent
