"""The translation of TRL's arguments: of a file, a command line or a script, which are treated alike."""

from __future__ import annotations

import re
from typing import Any

from sftkit_commands.init import hf, trl, trl_data, trl_model
from sftkit_commands.init.local import Places
from sftkit_commands.init.nested import flatten
from sftkit_commands.init.translation import Expression, Lost, Translation, shown
from sftkit_commands.init.trl import DATASET_RULES, INSIDE, LAUNCH, OLD, rules


def translate(values: dict[str, Any], places: Places, *, script: bool = False, old: bool = False) -> Translation:
    """The translation of TRL's arguments.

    Args:
        values: arguments by name.
        places: where files are.
        script: whether they come from a Python script, in which the defaults of classes apply.
        old: whether the script uses names of 2024; some arguments show it too.
    """
    old = old or any(key in values for key in OLD)
    t = Translation(f"{trl.NAME} of 2024" if old else trl.NAME, flatten(values, INSIDE))
    known = rules()
    objects(t)
    t.blank({*known, *(f"[].{name}" for name in DATASET_RULES)})
    surroundings(t)
    trl_model.model(t, places, script, old)
    trl_data.data(t, places)
    trl_model.adapter(t, script)
    trl_model.quantization(t, script)
    trl_model.unsloth(t)
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


def objects(t: Translation) -> None:
    """What a script makes itself: its tokenizer's attributes, and objects that no configuration can hold."""
    t.apply({key: trl.RULES[key] for key in trl.OBJECTS if isinstance(t.given.get(key), Expression)})
    for key in [key for key in t.given if key.startswith("tokenizer.")]:
        if key == "tokenizer.trust_remote_code" and t.get(key):
            t.move(key, "model.trust_remote_code")
        elif key in ("tokenizer.chat_template", "tokenizer.eos_token", "tokenizer.bos_token"):
            t.lose(key, "the script changes the tokenizer", "change it, save it, and name it in model.tokenizer")
        else:
            t.always(key, "the tokenizer is prepared for the run")


def surroundings(t: Translation) -> None:
    """The launcher and the environment."""
    for key in ("accelerate.num_processes", "torchrun.nproc_per_node", "num_processes", "num_machines"):
        if t.pending(key) and str(t.get(key)) == "1":
            t.always(key, "one process needs no launcher")
    launchers = ("accelerate", "torchrun", "deepspeed")
    alone = ("num_processes", "num_machines", "accelerate_config", "machine_rank")
    for key in [key for key in t.given if t.pending(key)]:
        if key in alone or ("." in key and key.split(".")[0] in launchers):
            t.apply({key: LAUNCH})
    for key in [key for key in t.given if key.startswith("env.") and t.pending(key)]:
        t.lose(key, "it is part of the environment", f"export {key[4:]}={shown(key, t.get(key))}")


def loss(t: Translation, places: Places, old: bool) -> None:
    """What is trained: in TRL all of a conversation, unless the arguments say otherwise."""
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
        kinds = "conversations, or prompts and completions" if old else "conversations"
        t.remarks.append(f"If the data is {kinds}, set plugins.formats.loss to all: TRL trains all of their tokens.")
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
            "TRL of 2024 trained no EOS unless it packed; sftkit ends each text with one, so the model learns to stop."
        )


def length(t: Translation) -> None:
    """The longest row, and what happens to longer ones."""
    for key in [key for key in ("max_length", "max_seq_length") if key in t.given]:
        if t.get(key) is not None:
            t.move(key, "data.max_length", int(t.get(key)))
        elif key == "max_length" and t.given[key] is None:
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
