"""What of LLaMA-Factory's keys needs thought: model, adapter, precision, packing, memory."""

from __future__ import annotations

from typing import Any

from sftkit_commands.init import hf, llamafactory, llamafactory_data, rope, techniques
from sftkit_commands.init.llamafactory import INFO_RULES, INSIDE, rules
from sftkit_commands.init.local import Places
from sftkit_commands.init.nested import flatten
from sftkit_commands.init.translation import Translation

_ADAPTER_KEYS = (
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_target",
    "additional_target",
    "use_rslora",
    "use_dora",
    "pissa_init",
    "pissa_iter",
)
_FREEZE_KEYS = ("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules")


def translate(values: dict[str, Any], places: Places) -> Translation:
    """The translation of a configuration of LLaMA-Factory, with the descriptions of its data sets."""
    info, base = llamafactory_data.read_info(values, places)
    given = dict(values)
    for name, description in info.items():
        given |= {f"dataset_info.{name}.{key}": value for key, value in flatten(description, INSIDE).items()}
    t = Translation(llamafactory.NAME, given)
    t.blank({*rules(), *(f"dataset_info.{name}.{key}" for name in info for key in INFO_RULES)})
    if t.get("stage", "sft") == "sft":
        t.always("stage", "it is supervised fine-tuning")
    model(t, places)
    llamafactory_data.data(t, places, base)
    trained(t)
    llamafactory_data.template(t)
    adapter(t, places)
    precision(t)
    memory(t)
    packing(t)
    other(t)
    hf.training(t, places)
    techniques.muon(t)
    techniques.lora_plus(t, t.get("finetuning_type", "lora"), "lora_embedding_B")
    hf.early_stopping(t, "early_stopping_steps")
    t.apply(rules())
    defaults(t)
    hf.prune(t)
    return t.finish()


def model(t: Translation, places: Places) -> None:
    """The model, or the adapter that is trained further."""
    adapters = llamafactory_data.names(t.get("adapter_name_or_path"))
    if len(adapters) == 1 and not t.get("create_new_adapter"):
        t.move("adapter_name_or_path", "model.name", places.name(adapters[0]))
        t.always("model_name_or_path", "the directory of the adapter names it")
    elif adapters:
        t.lose("adapter_name_or_path", "one adapter is trained further", "merge the others: sftkit export RUN --merge")
    if t.pending("model_name_or_path"):
        t.move("model_name_or_path", "model.name", places.name(str(t.get("model_name_or_path"))))
    hf.switched(t, "train_from_scratch", "model.init", "random")
    rope.by_type(t, "rope_scaling")
    coefficient = t.get("moe_aux_loss_coef")
    if t.pending("moe_aux_loss_coef") and not places.may_have_experts(t.get("model_name_or_path")):
        t.always("moe_aux_loss_coef", "the model has no experts")
    elif t.pending("moe_aux_loss_coef"):
        options = {"output_router_logits": True, "router_aux_loss_coef": coefficient}
        t.put("model.options", {**(t.value("model.options") or {}), **options}, "moe_aux_loss_coef")
        t.translated("moe_aux_loss_coef", "model.options", "the coefficient has another name in some models")
    name = t.get("flash_attn")
    if name == "disabled":
        hf.attention(t, "flash_attn", "eager")
    elif name == "auto":
        t.always("flash_attn", "transformers chooses the attention")
    elif t.pending("flash_attn"):
        hf.attention(t, "flash_attn", name)
    added = [*llamafactory_data.names(t.get("add_tokens")), *llamafactory_data.names(t.get("add_special_tokens"))]
    for key in [key for key in ("add_tokens", "add_special_tokens") if t.pending(key)]:
        if t.get("template") in ("chatml", "llama3", "default", "vicuna", "alpaca"):
            t.select("chatml", tokens=added)
            t.translated(key, "plugins.chatml.tokens")
        else:
            t.lose(
                key,
                "tokens are added with a chat template only",
                "add them to the tokenizer, save it, and name it in model.tokenizer",
            )


def trained(t: Translation) -> None:
    """What is trained: each answer, only the last one, or prompts too."""
    stage = t.get("stage", "sft")
    if t.get("train_on_prompt"):
        t.select("formats", loss="all")
        t.translated("train_on_prompt", "plugins.formats.loss")
    elif t.get("mask_history"):
        t.select("formats", turns="last")
        t.translated("mask_history", "plugins.formats.turns")
    for key in [key for key in ("train_on_prompt", "mask_history") if t.pending(key)]:
        t.always(key, "it is off, or train_on_prompt overrides it")
    if stage == "pt":
        t.translated("stage", "plugins.packing", "the texts are one stream, cut into rows")
    if t.pending("buffer_size") and not t.get("streaming"):
        t.always("buffer_size", "it does nothing without streaming")
    elif t.get("streaming"):
        t.move_or_default("buffer_size", "data.shuffle_buffer", 16384)


def adapter(t: Translation, places: Places) -> None:
    """LoRA unless something else is asked for, with a base in 4 or 8 bits."""
    kind = t.get("finetuning_type", "lora")
    further = t.entries.get("adapter_name_or_path")
    if kind == "lora" and further and further.kind == "translated":
        t.translated("finetuning_type", "model.name", "the adapter keeps its own options")
    elif kind == "lora":
        t.select("peft")
        if t.get("use_unsloth"):
            _unsloth(t)
        else:
            _lora(t)
        t.translated("finetuning_type", "plugins.unsloth" if t.selected("unsloth") else "plugins.peft")
    elif kind == "full":
        t.always("finetuning_type", "all weights are trained without plugin peft")
    elif kind == "freeze":
        modules, extra = t.get("freeze_trainable_modules", "all"), t.get("freeze_extra_modules")
        techniques.last_layers(t, places, llamafactory_data.names(modules), llamafactory_data.names(extra))
    else:
        t.lose(
            "finetuning_type",
            f"{kind} is not supported, so all weights are trained",
            "use lora, or plugin peft: {method: ...}",
        )
    for key in [key for key in _ADAPTER_KEYS if t.pending(key)]:
        t.always(key, "it does nothing without a new adapter, or is off")
    for key in [key for key in _FREEZE_KEYS if t.pending(key)]:
        t.always(key, "it matters for finetuning_type: freeze only")
    _quantization(t)
    if t.pending("use_unsloth"):
        t.always("use_unsloth", "it is off, or unsloth is not used without LoRA")


def _lora(t: Translation) -> None:
    t.move_or_default("lora_rank", "plugins.peft.r", 8)
    t.move("lora_alpha", "plugins.peft.alpha")
    t.move("lora_dropout", "plugins.peft.dropout")
    targets = llamafactory_data.names(t.get("lora_target", "all"))
    t.move("lora_target", "plugins.peft.target_modules", "all-linear" if targets == ["all"] else targets)
    saved = llamafactory_data.names(t.get("additional_target"))
    t.move("additional_target", "plugins.peft.options.modules_to_save", saved)
    for key in ("use_rslora", "use_dora"):
        hf.switched(t, key, f"plugins.peft.options.{key}", True)
    if t.get("pissa_init"):
        steps = int(t.get("pissa_iter", 16))
        name = "pissa" if steps == -1 else f"pissa_niter_{steps}"
        t.move("pissa_init", "plugins.peft.options.init_lora_weights", name)
        t.translated("pissa_iter", "plugins.peft.options.init_lora_weights")


def _unsloth(t: Translation) -> None:
    """Unsloth loads the model and adds its own LoRA."""
    t.values["plugins"].pop("peft")
    rank = int(t.get("lora_rank", 8))
    t.select(
        "unsloth",
        load_in_4bit=t.get("quantization_bit") == 4 or None,
        load_in_8bit=t.get("quantization_bit") == 8 or None,
    )
    t.translated("use_unsloth", "plugins.unsloth")
    t.move_or_default("lora_rank", "plugins.unsloth.r", rank)
    t.move_or_default("lora_alpha", "plugins.unsloth.lora_alpha", 2 * rank)
    t.move("lora_dropout", "plugins.unsloth.lora_dropout")
    targets = llamafactory_data.names(t.get("lora_target", "all"))
    t.move("lora_target", "plugins.unsloth.target_modules", "all-linear" if targets == ["all"] else targets)
    t.move("additional_target", "plugins.unsloth.modules_to_save", llamafactory_data.names(t.get("additional_target")))
    hf.switched(t, "use_rslora", "plugins.unsloth.use_rslora", True)
    hf.switched(t, "use_dora", "plugins.unsloth.options", {"use_dora": True})


def _quantization(t: Translation) -> None:
    bits, method = t.get("quantization_bit"), str(t.get("quantization_method", "bnb"))
    if bits in (4, 8) and method in ("bnb", "bitsandbytes") and not t.selected("unsloth"):
        t.select("bitsandbytes")
        t.move("quantization_bit", "plugins.bitsandbytes.bits")
        t.translated("quantization_method", "plugins.bitsandbytes")
        t.move("quantization_type", "plugins.bitsandbytes.quant_type")
        t.move("double_quantization", "plugins.bitsandbytes.double_quant")
    elif bits and t.selected("unsloth"):
        t.translated("quantization_bit", f"plugins.unsloth.load_in_{bits}bit")
    elif bits:
        t.lose(
            "quantization_bit", f"{bits} bits by {method} are not supported", "plugin bitsandbytes, with 4 or 8 bits"
        )
    for key in ("quantization_bit", "quantization_method", "quantization_type", "double_quantization"):
        if t.pending(key):
            t.always(key, "it does nothing without quantization_bit")
    if t.pending("upcast_layernorm") and t.get("upcast_layernorm") and not t.selected("bitsandbytes"):
        t.lose("upcast_layernorm", "norms keep the type of the weights", "model.dtype: float32")
    elif t.pending("upcast_layernorm"):
        t.always("upcast_layernorm", "it is off, or a quantized base always has norms in float32")


def precision(t: Translation) -> None:
    """The base of an adapter is loaded in the precision of the run; weights that are trained are float32."""
    full = t.get("finetuning_type", "lora") != "lora"
    if t.get("pure_bf16"):
        t.move("pure_bf16", "model.dtype", "bfloat16")
    elif t.pending("pure_bf16"):
        t.always("pure_bf16", "it is off")
    if not t.has("model.dtype") and not full and not t.get("fp16"):
        t.default("model.dtype", "bfloat16" if t.get("bf16") else "auto")


def memory(t: Translation) -> None:
    """Gradient checkpointing, which LLaMA-Factory switches on."""
    reentrant = t.get("use_reentrant_gc", True)
    if t.get("use_unsloth_gc"):
        t.select("activations", checkpointing="full", offload=True)
        t.translated("use_unsloth_gc", "plugins.activations.offload")
    elif t.pending("use_unsloth_gc"):
        t.always("use_unsloth_gc", "it is off")
    on = not t.get("disable_gradient_checkpointing") and not t.selected("activations") and not t.selected("unsloth")
    if on and t.get("gradient_checkpointing") is None:
        t.default("train.gradient_checkpointing", True)
    if on and t.get("gradient_checkpointing_kwargs") is None:
        t.default("train.gradient_checkpointing_kwargs", {"use_reentrant": bool(reentrant)})
        t.translated("use_reentrant_gc", "train.gradient_checkpointing_kwargs")
    if t.pending("use_reentrant_gc"):
        t.always("use_reentrant_gc", "nothing is recomputed by torch's checkpointing, or its arguments are set")
    if t.pending("disable_gradient_checkpointing"):
        t.always(
            "disable_gradient_checkpointing",
            "it is off in sftkit unless it is asked for"
            if t.get("disable_gradient_checkpointing")
            else "checkpointing is on",
        )
    if t.pending("gradient_checkpointing") and not on:
        t.always("gradient_checkpointing", "another key decides")


def packing(t: Translation) -> None:
    """Packed documents never attend to each other, whether that is asked for or not."""
    pretraining = t.get("stage", "sft") == "pt"
    packs = t.get("neat_packing") or t.get("packing", pretraining)
    if packs:
        t.select("packing", strategy="wrapped" if pretraining else None, keep_short=False if pretraining else None)
        if t.has("data.eval"):
            t.default("plugins.packing.eval", True)
        note = "" if t.get("neat_packing") else "packed documents do not attend to each other"
        if t.get("packing"):
            t.translated("packing", "plugins.packing", note)
        if t.get("neat_packing"):
            t.translated("neat_packing", "plugins.packing")
    for key in [key for key in ("packing", "neat_packing") if t.pending(key)]:
        t.always(key, "it is off, or the other key decides")


def other(t: Translation) -> None:
    """Keys that switch one thing on."""
    hf.switched(t, "disable_shuffling", "train.train_sampling_strategy", "sequential")
    hf.switched(t, "use_dft_loss", "plugins.loss.type", "dft")
    if t.get("enable_liger_kernel") and not t.selected("unsloth"):
        t.select("liger")
        t.translated("enable_liger_kernel", "plugins.liger")
    elif t.pending("enable_liger_kernel"):
        t.always("enable_liger_kernel", "it is off, or unsloth has kernels of its own")


def defaults(t: Translation) -> None:
    """Values of LLaMA-Factory that differ from those of sftkit, where the file says nothing."""
    if t.get("cutoff_len") is None:
        t.default("data.max_length", 2048)
    if "logging_steps" not in t.given:
        t.default("train.logging_steps", 500)
    if "save_total_limit" not in t.given:
        t.default("train.save_total_limit", None)
    if t.get("output_dir") is None:
        t.default("train.output_dir", "trainer_output")
