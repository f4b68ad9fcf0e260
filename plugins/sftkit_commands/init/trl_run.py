"""What of TRL's arguments needs thought: model, adapter, loss, packing; those of a script are translated the same way."""

from __future__ import annotations

import re
from typing import Any

from sftkit_commands.init import hf, trl, trl_data
from sftkit_commands.init.local import Places
from sftkit_commands.init.translation import Always, Expression, Lost, Translation, flatten
from sftkit_commands.init.trl import INSIDE, LAUNCH, OLD, rules

_LORA_OPTIONS = {"lora_modules_to_save": "modules_to_save", "use_rslora": "use_rslora", "use_dora": "use_dora"}
_LORA_KEYS = (
    "use_peft",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "lora_target_parameters",
    *_LORA_OPTIONS,
)
_BITS_OPTIONS = {
    "bnb_4bit_quant_type": "quant_type",
    "bnb_4bit_compute_dtype": "compute_dtype",
    "bnb_4bit_quant_storage": "quant_storage",
    "bnb_4bit_use_double_quant": "double_quant",
    "use_bnb_nested_quant": "double_quant",
}
_MODEL_OPTIONS = ("model_init_kwargs", "device_map", "token", "use_auth_token")
_UNSLOTH = (
    "load_in_4bit",
    "load_in_8bit",
    "load_in_16bit",
    "full_finetuning",
    "max_seq_length",
    "r",
    "lora_alpha",
    "lora_dropout",
    "bias",
    "target_modules",
    "layers_to_transform",
    "modules_to_save",
    "use_rslora",
    "loftq_config",
    "use_gradient_checkpointing",
    "random_state",
)
_REENTRANT = "transformers chooses its arguments"


def translate(values: dict[str, Any], places: Places, *, script: bool = False, old: bool = False) -> Translation:
    """The translation of TRL's arguments.

    Args:
        values: arguments by name.
        places: where files are.
        script: whether they come from a Python script, in which the defaults of classes apply.
        old: whether the script uses names of 2024; some arguments show it too.
    """
    old = old or any(key in values for key in OLD)
    t = Translation(f"{trl.NAME}, as of 2024" if old else trl.NAME, flatten(values, INSIDE))
    known = rules()
    t.blank(known)
    surroundings(t)
    model(t, places, script, old)
    trl_data.data(t, places)
    adapter(t, script)
    quantization(t, script)
    unsloth(t)
    loss(t, places, old)
    length(t)
    packing(t, old)
    memory(t, old)
    precision(t, old)
    hf.training(t, places)
    t.apply(known)
    defaults(t, old)
    hf.prune(t)
    return t.finish()


def surroundings(t: Translation) -> None:
    """The launcher and the environment."""
    t.apply(
        {key: LAUNCH for key in t.given if key.split(".")[0] in ("accelerate", "torchrun", "deepspeed") and "." in key}
    )
    t.apply(
        {
            key: LAUNCH
            for key in ("num_processes", "num_machines", "accelerate_config", "machine_rank")
            if key in t.given
        }
    )
    for key in [key for key in t.given if key.startswith("env.") and t.pending(key)]:
        t.lose(key, "it is part of the environment", f"export {key[4:]}={t.get(key)}")


def model(t: Translation, places: Places, script: bool, old: bool) -> None:
    """The model, its tokenizer and the arguments of ``from_pretrained``."""
    if t.get("model_name_or_path"):
        t.move("model_name_or_path", "model.name", places.name(str(t.get("model_name_or_path"))))
    for key in [key for key in ("model", "tokenizer_name") if t.pending(key)]:
        if key == "model":
            t.always(key, "the class follows from the model's own files")
        elif t.get(key) in (None, t.get("model_name_or_path")):
            t.always(key, "it is the model's")
        else:
            t.move(key, "model.tokenizer", places.name(str(t.get(key))))
    for key in [key for key in t.given if key.startswith("tokenizer.") and key not in t.entries]:
        t.always(key, "batches are padded on the right by the collator")
    kwargs = "model_init_kwargs."
    for key in ("dtype", "torch_dtype", f"{kwargs}dtype", f"{kwargs}torch_dtype"):
        name = hf.dtype_name(t.get(key))
        if t.pending(key) and name and not t.has("model.dtype"):
            t.move(key, "model.dtype", name)
        elif t.pending(key):
            t.lose(key, "unknown dtype, or it is given twice", "set model.dtype")
    for key in ("attn_implementation", f"{kwargs}attn_implementation"):
        if t.pending(key):
            hf.attention(t, key, t.get(key))
    if t.pending("use_flash_attention_2") and t.get("use_flash_attention_2"):
        hf.attention(t, "use_flash_attention_2", "flash_attention_2")
    elif t.pending("use_flash_attention_2"):
        t.always("use_flash_attention_2", "it is off")
    if t.pending("router_aux_loss_coef"):
        t.put("model.options.output_router_logits", True, "router_aux_loss_coef")
        t.move("router_aux_loss_coef", "model.options.router_aux_loss_coef")
    if t.pending("model_init_kwargs"):
        t.always("model_init_kwargs", "it is empty")
    for key in [key for key in t.given if key.startswith(kwargs) and t.pending(key)]:
        _option(t, key, key[len(kwargs) :])
    if script and "model" in t.given and not old and not t.selected("unsloth"):
        t.default("model.dtype", "auto")


def _option(t: Translation, key: str, name: str) -> None:
    if name in ("revision", "trust_remote_code"):
        t.move(key, f"model.{name}")
    elif name in ("token", "use_auth_token"):
        t.lose(key, hf.HUB_TOKEN.reason, hf.HUB_TOKEN.fix)
    elif name in ("device_map", "low_cpu_mem_usage", "use_safetensors"):
        t.always(key, "each process loads the model on its device, from safetensors")
    elif name == "use_cache":
        t.always(key, "there is no cache in training")
    else:
        t.move(key, f"model.options.{name}")


def adapter(t: Translation, script: bool) -> None:
    """LoRA; without target modules, peft chooses them by the type of the model, which `all-linear` would not be."""
    further = {key: value for key, value in t.below("LoraConfig.").items() if not isinstance(value, Expression)}
    if not t.get("use_peft"):
        for key in [key for key in _LORA_KEYS if t.pending(key)]:
            t.always(key, "it does nothing without use_peft")
        return
    defaults = (
        {"lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0}
        if script
        else {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
    )
    values = {key: t.get(key, value) for key, value in defaults.items()}
    options = {name: t.get(key) for key, name in _LORA_OPTIONS.items() if t.get(key)} | further
    options = {
        name: value
        for name, value in options.items()
        if value is not None and name not in ("task_type", "inference_mode", "peft_type")
    }
    t.select("peft")
    targets = t.get("lora_target_modules")
    if targets is None and t.get("lora_target_parameters") is None:
        config = {
            "peft_type": "LORA",
            "r": values["lora_r"],
            "lora_alpha": values["lora_alpha"],
            "lora_dropout": values["lora_dropout"],
        }
        t.select("peft", config={**config, **options})
        target = "plugins.peft.config"
    else:
        if isinstance(targets, list) and targets == ["all-linear"]:
            targets = "all-linear"
        t.select(
            "peft",
            r=values["lora_r"],
            alpha=values["lora_alpha"],
            dropout=values["lora_dropout"],
            target_modules=targets,
        )
        t.select("peft", target_parameters=t.get("lora_target_parameters"), options=options or None)
        target = "plugins.peft"
    t.defaults += [
        f"{target}.{key if 'config' in target or key == 'lora_r' else key}".replace("lora_r", "r") for key in ()
    ]
    for key in _LORA_KEYS:
        if t.pending(key):
            t.translated(key, target)
    for name in [name for name in further if t.pending(f"LoraConfig.{name}")]:
        if name in options:
            t.translated(f"LoraConfig.{name}", f"{target}.{'' if 'config' in target else 'options.'}{name}")
        else:
            t.always(f"LoraConfig.{name}", "the adapter is trained, and the model writes text")


def quantization(t: Translation, script: bool) -> None:
    """A base in 4 or 8 bits; the scales are quantized only if that is asked for."""
    bits = 4 if t.get("load_in_4bit") else 8 if t.get("load_in_8bit") else 0
    if bits:
        t.select("bitsandbytes", bits=bits)
        t.translated(f"load_in_{bits}bit", "plugins.bitsandbytes.bits")
    if bits == 4:
        for key, option in _BITS_OPTIONS.items():
            value = t.get(key)
            t.move(key, f"plugins.bitsandbytes.{option}", hf.dtype_name(value) or value if "dtype" in key else value)
        t.default("plugins.bitsandbytes.double_quant", False)
        if script:
            t.default("plugins.bitsandbytes.quant_type", "fp4")
            t.default("plugins.bitsandbytes.compute_dtype", "float32")
    for key in ("load_in_4bit", "load_in_8bit", *_BITS_OPTIONS):
        if t.pending(key):
            t.always(key, "it is off, or does nothing without 4 bits")
    for key in [key for key in t.given if key.startswith("BitsAndBytesConfig.") and t.pending(key)]:
        option = {"llm_int8_threshold": "threshold", "llm_int8_skip_modules": "skip_modules"}.get(key.split(".")[1])
        if option and bits:
            t.move(key, f"plugins.bitsandbytes.{option}")


def unsloth(t: Translation) -> None:
    """A model that unsloth loads and adapts."""
    given = t.below("unsloth.")
    if not given:
        return
    t.select("unsloth", load_in_4bit=t.get("unsloth.load_in_4bit", True))
    t.values["plugins"].pop("peft", None)
    for name in [name for name in given if t.pending(f"unsloth.{name}")]:
        key = f"unsloth.{name}"
        if name in _UNSLOTH:
            t.move(key, f"plugins.unsloth.{name}")
        elif name == "dtype":
            t.move(key, "plugins.unsloth.dtype", hf.dtype_name(t.get(key)))
        elif name in ("token", "device_map"):
            t.lose(key, hf.HUB_TOKEN.reason, hf.HUB_TOKEN.fix) if name == "token" else t.always(key, "it is on one GPU")
        else:
            t.move(key, f"plugins.unsloth.options.{name}")


def loss(t: Translation, places: Places, old: bool) -> None:
    """What is trained. TRL trains all of a conversation unless it is told otherwise; sftkit what the assistant writes."""
    columns = places.columns(trl_data.first_file(t))
    chats = any(name in columns for name in ("messages", "conversations", "conversation"))
    pair = "prompt" in columns and "completion" in columns
    completion, assistant = t.get("completion_only_loss"), t.get("assistant_only_loss")
    trl_data.collator(t)
    if assistant:
        t.select("formats", loss="assistant")
        t.translated("assistant_only_loss", "plugins.formats.loss")
        if t.pending("completion_only_loss"):
            t.always("completion_only_loss", "what the assistant writes is part of the completion")
    elif completion is not None and not (chats and completion):
        t.select("formats", loss="completion" if completion else "all")
        t.translated("completion_only_loss", "plugins.formats.loss")
    elif not t.selected("completion_only") and (chats or (pair and old)):
        t.default("plugins.formats.loss", "all")
    elif not columns and not t.selected("completion_only"):
        kinds = "conversations, or prompts and completions," if old else "conversations"
        t.remarks.append(f"If the data is {kinds} set plugins.formats.loss to all: TRL trains all of their tokens.")
    for key in ("completion_only_loss", "assistant_only_loss"):
        if t.pending(key):
            t.always(key, "it is off, or has no effect on this data")
    kind = t.get("loss_type", "nll")
    if t.pending("loss_type") and kind in ("nll", "chunked_nll"):
        t.always("loss_type", "it is the default; logits are always computed chunk by chunk")
    elif t.pending("loss_type") and kind == "dft":
        t.move("loss_type", "plugins.loss.type")
    elif t.pending("loss_type"):
        t.lose("loss_type", f"there is no loss {kind!r}", "plugin loss has nll and dft")
    if old:
        t.remarks.append(
            "TRL of 2024 trained no EOS unless it packed; sftkit ends each text with one, so that the model learns to stop."
        )


def length(t: Translation) -> None:
    """The longest row, and what happens to longer ones."""
    for key in [key for key in ("max_length", "max_seq_length") if key in t.given]:
        if t.get(key) is not None and t.pending(key):
            t.move(key, "data.max_length", int(t.get(key)))
        elif key not in t.entries or t.entries[key].note == "it is empty":
            t.demote(key, "a run always has a limit; longer rows stop it", "set data.max_length")
            t.put("data.truncation", "error", key)
    mode = t.get("truncation_mode", "keep_start")
    if mode == "keep_start":
        t.always("truncation_mode", "it is the default")
    else:
        t.lose("truncation_mode", "rows keep their beginning", "data.truncation: drop leaves long rows out")


def packing(t: Translation, old: bool) -> None:
    """Packed and padding-free batches."""
    strategy = "wrapped" if old else str(t.get("packing_strategy", "bfd"))
    if t.get("packing"):
        wrapped = strategy == "wrapped"
        t.select("packing", strategy="wrapped" if wrapped else None, keep_short=False if old else None)
        if t.has("data.eval") and t.get("eval_packing", True):
            t.put("plugins.packing.eval", True, "eval_packing")
        t.translated("packing", "plugins.packing", "packed documents do not attend to each other" if wrapped else "")
        note = (
            "a long row loses its end, and is not divided into several"
            if strategy in ("bfd_split", "bfd-requeue")
            else ""
        )
        t.translated("packing_strategy", "plugins.packing.strategy", note)
        if t.has("data.eval"):
            t.translated("eval_packing", "plugins.packing.eval")
    for key in ("packing", "packing_strategy", "eval_packing"):
        if t.pending(key):
            t.always(key, "nothing is packed")
    if t.get("padding_free"):
        t.select("flash_attn")
        t.translated("padding_free", "plugins.flash_attn")
    elif t.pending("padding_free"):
        t.always("padding_free", "it is off")
    if isinstance(t.get("pad_to_multiple_of"), int):
        t.move("pad_to_multiple_of", "plugins.pad.to_multiple_of")
    elif t.pending("pad_to_multiple_of"):
        t.always("pad_to_multiple_of", "padding is not trained")


def memory(t: Translation, old: bool) -> None:
    """Gradient checkpointing, which newer versions switch on, and offloading."""
    off = t.given.get("gradient_checkpointing") is False
    if t.get("activation_offloading"):
        t.select("activations", checkpointing="full", offload=True)
        t.translated("activation_offloading", "plugins.activations.offload")
        for key in [key for key in ("gradient_checkpointing", "gradient_checkpointing_kwargs") if t.pending(key)]:
            t.always(key, "plugin activations recomputes activations")
    elif t.pending("activation_offloading"):
        t.always("activation_offloading", "it is off")
    if (
        not old
        and not off
        and not t.selected("activations")
        and not t.selected("unsloth")
        and "gradient_checkpointing" not in t.given
    ):
        t.default("train.gradient_checkpointing", True)
    for key in [
        key
        for key in ("gradient_checkpointing", "gradient_checkpointing_kwargs")
        if t.selected("unsloth") and t.pending(key)
    ]:
        t.always(key, "unsloth recomputes activations: use_gradient_checkpointing")


def precision(t: Translation, old: bool) -> None:
    """Newer versions compute in bfloat16 unless float16 is asked for."""
    if not old and t.given.get("bf16") is None and not t.get("fp16") and not t.get("use_cpu"):
        t.default("train.bf16", True)


def defaults(t: Translation, old: bool) -> None:
    """Values of TRL that differ from those of sftkit, where the arguments say nothing."""
    if t.get("learning_rate") is None and not old:
        t.default("train.learning_rate", 2e-5)
    if "logging_steps" not in t.given and old:
        t.default("train.logging_steps", 500)
    if "save_total_limit" not in t.given:
        t.default("train.save_total_limit", None)
    if t.get("output_dir") is None:
        t.default("train.output_dir", "trainer_output")
    t.apply(
        {
            key: Lost("sftkit has no such argument")
            for key in t.given
            if re.match(r"(LoraConfig|BitsAndBytesConfig|load_dataset|eval\.load_dataset)\.", key)
        }
    )
    t.apply({key: Always("a run of its own has one data set") for key in ()})
