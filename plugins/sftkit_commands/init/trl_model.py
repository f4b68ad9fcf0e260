"""TRL's arguments of the model, its adapter, and a base in 4 or 8 bits."""

from __future__ import annotations

from sftkit_commands.init import hf
from sftkit_commands.init.local import Places
from sftkit_commands.init.translation import Expression, Translation

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
            dtype = hf.dtype_name(value) if "dtype" in key else None
            t.move(key, f"plugins.bitsandbytes.{option}", dtype or value)
        t.default("plugins.bitsandbytes.double_quant", False)
        if script:
            t.default("plugins.bitsandbytes.quant_type", "fp4")
            t.default("plugins.bitsandbytes.compute_dtype", "float32")
    for key in ("load_in_4bit", "load_in_8bit", *_BITS_OPTIONS):
        if t.pending(key):
            t.always(key, "it is off, or does nothing without 4 bits")
    for key in [key for key in t.given if key.startswith("BitsAndBytesConfig.") and t.pending(key)]:
        further = {"llm_int8_threshold": "threshold", "llm_int8_skip_modules": "skip_modules"}.get(key.split(".")[1])
        if further and bits:
            t.move(key, f"plugins.bitsandbytes.{further}")


def unsloth(t: Translation) -> None:
    """A model that unsloth loads and adapts."""
    given = t.below("unsloth.")
    if not given:
        return
    t.select("unsloth", load_in_4bit=t.get("unsloth.load_in_4bit", True))
    t.values["plugins"].pop("peft", None)
    for name in [name for name in given if t.pending(f"unsloth.{name}")]:
        key = f"unsloth.{name}"
        if t.get(key) is None:
            t.always(key, "it is empty")
        elif name in _UNSLOTH:
            t.move(key, f"plugins.unsloth.{name}")
        elif name == "dtype":
            t.move(key, "plugins.unsloth.dtype", hf.dtype_name(t.get(key)))
        elif name == "token":
            t.lose(key, hf.HUB_TOKEN.reason, hf.HUB_TOKEN.fix)
        elif name == "device_map":
            t.always(key, "it is on one GPU")
        else:
            t.move(key, f"plugins.unsloth.options.{name}")
