"""Axolotl's model, adapter, precision, memory, kernels and tokens."""

from __future__ import annotations

import re
from typing import Any

from sftkit_commands.init import hf, rope
from sftkit_commands.init.local import Places
from sftkit_commands.init.translation import Translation

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
_LIGER_OPTIONS = {
    "liger_rope": ("rope",),
    "liger_rms_norm": ("rms_norm",),
    "liger_glu_activation": ("swiglu", "geglu"),
    "liger_swiglu": ("swiglu",),
    "liger_layer_norm": ("layer_norm",),
}


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
            _overrides(t, key, dict(t.get(key)))
        elif t.pending(key):
            t.always(key, "it is empty")
    if value := t.get("rope_scaling"):
        if reason := rope.by_parameters(t, "rope_scaling", value):
            t.lose("rope_scaling", reason, rope.INSTEAD)
        else:
            t.translated("rope_scaling", rope.TARGET)
    elif t.pending("rope_scaling"):
        t.always("rope_scaling", "it is empty")
    hf.switched(t, "reinit_weights", "model.init", "random")


def _overrides(t: Translation, key: str, given: dict[str, Any]) -> None:
    """What is changed in the model's configuration; scaled positions become a plugin, which sets their number too."""
    scaling, target = given.pop("rope_scaling", None), "model.options"
    if scaling is not None:
        if reason := rope.by_parameters(t, key, scaling):
            t.lose(key, f"rope_scaling: {reason}", rope.INSTEAD)
            return
        given.pop("max_position_embeddings", None)
        target = rope.TARGET
    if given:
        t.put("model.options", {**(t.value("model.options") or {}), **given}, key)
    t.translated(key, target, f"the rest: model.options {', '.join(given)}" if scaling is not None and given else "")


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
    if t.get("lora_target_linear"):
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
            if t.get(key):
                t.translated(key, "train.bf16", remark)
            else:
                t.always(key, "it is off")
    elif half == "fp16":
        t.put("train.fp16", True, "fp16")
    for key in [key for key in ("fp16", "float16") if t.pending(key)]:
        if half == "fp16" and t.get(key):
            t.translated(key, "train.fp16", "the weights are float32: float16 ones cannot be trained with fp16")
        else:
            t.always(key, "it is off" if not t.get(key) else "bf16 is used")
    for key in [key for key in ("bf16", "bfloat16") if t.pending(key)]:
        t.always(key, "it is off")
    if t.pending("tf32") and t.get("tf32") is True:
        t.move("tf32", "train.tf32")
    elif t.pending("tf32"):
        t.always("tf32", "it is off")


def memory(t: Translation) -> None:
    """Checkpointing and offloading of activations."""
    kind, offload = t.get("gradient_checkpointing"), t.get("activation_offloading")
    if offload or kind in ("offload", "offload_disk", "unsloth"):
        t.select("activations", checkpointing="full", offload=True)
        note = "to the memory of the host" if offload in ("disk", "legacy") or kind == "offload_disk" else ""
        if offload:
            t.translated("activation_offloading", "plugins.activations.offload", note)
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
        t.move_or_default(
            "gradient_checkpointing_kwargs", "train.gradient_checkpointing_kwargs", {"use_reentrant": False}
        )
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
