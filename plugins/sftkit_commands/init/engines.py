"""Rules and handlers of what shards a model: FSDP, DeepSpeed and tensor parallelism become plugins."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sftkit_commands.init.local import Places
from sftkit_commands.init.translation import Always, Handled, Lost, Rule, Translation

#: Fields of `TrainingArguments`.
RULES: dict[str, Rule] = {
    "deepspeed": Handled("plugin deepspeed, config; or stage and offload"),
    "fsdp": Handled("plugin fsdp"),
    "fsdp_config": Handled("plugin fsdp, offload and reshard_after_forward"),
    "fsdp_transformer_layer_cls_to_wrap": Always("each layer is a block"),
    "fsdp_min_num_params": Always("each layer is a block"),
    "parallelism_config": Lost("it is not supported as a whole", "plugin fsdp, deepspeed or tensor_parallel"),
}
#: Configurations of DeepSpeed that come with Axolotl and LLaMA-Factory, by the name of their file.
_PRESET = re.compile(r"(?:zero|ds_z)([23])(?:_bf16)?(?:_(cpuoffload_all|cpuoffload_params|offload))?(?:_config)?\.json")
_OFF = ("", "false", "none", "no")


def deepspeed(t: Translation, places: Places) -> None:
    """A mapping, or the path of a JSON file."""
    value = t.get("deepspeed")
    if not t.pending("deepspeed"):
        return
    if not value:
        t.always("deepspeed", "it is empty")
    elif not isinstance(value, str):
        t.move("deepspeed", "plugins.deepspeed.config")
    elif places.find(value):
        t.move("deepspeed", "plugins.deepspeed.config", places.name(value))
    elif preset := _PRESET.fullmatch(Path(value).name):
        stage, offloaded = int(preset[1]), preset[2]
        offload = "all" if offloaded and stage == 3 else "optimizer" if offloaded else None
        t.select("deepspeed", stage=stage, offload=offload)
        t.translated("deepspeed", "plugins.deepspeed", f"as the file of {t.peer} with this name")
    else:
        t.lose("deepspeed", f"there is no file {value}", "copy it here, and set plugins.deepspeed.config to its name")


def fsdp(t: Translation, places: Places) -> None:
    """FSDP, in any of the forms that transformers has had; its options are those of the plugin, or of no effect."""
    given = t.get("fsdp")
    words = given if isinstance(given, list) else [str(given).lower()] if given is not None else []
    words = [word for text in words for word in str(text).lower().replace(",", " ").split() if word not in _OFF]
    config = {re.sub(r"^fsdp_", "", str(name)): value for name, value in _mapping(t, places).items()}
    if words or (config and "fsdp" not in t.given):
        strategy = str(config.get("sharding_strategy", " ".join(words))).lower()
        keeps = "shard_grad_op" in strategy or str(config.get("reshard_after_forward", True)).lower() == "false"
        offloads = any(str(config.get(key)).lower() == "true" for key in ("offload_params", "cpu_offload"))
        t.select(
            "fsdp",
            offload=True if offloads or "offload" in words else None,
            reshard_after_forward=False if keeps else None,
        )
        note = "all processes share one copy" if "hybrid" in strategy else ""
        t.translated("fsdp", "plugins.fsdp", note)
        t.translated("fsdp_config", "plugins.fsdp", "each layer is a block, and the whole model is saved")
        if str(config.get("activation_checkpointing")).lower() == "true":
            t.put("train.gradient_checkpointing", True, "fsdp_config")
    for key in ("fsdp", "fsdp_config"):
        if t.pending(key):
            t.always(key, "it is off")


def tensor_parallel(t: Translation, key: str) -> None:
    """The number of processes that share each layer."""
    if t.pending(key) and int(t.get(key, 1)) > 1:
        t.move(key, "plugins.tensor_parallel.size", int(t.get(key)))
    elif t.pending(key):
        t.always(key, "it is off")


def _mapping(t: Translation, places: Places) -> Mapping[str, Any]:
    """The options of FSDP, which may be in a JSON file."""
    value = t.get("fsdp_config") or {}
    if isinstance(value, str):
        path = places.find(value)
        try:
            value = json.loads(path.read_text(encoding="utf-8")) if path else {}
        except (OSError, ValueError):
            value = {}
    return value if isinstance(value, Mapping) else {}


def mixed_precision(t: Translation) -> None:
    """DeepSpeed trains weights in half precision only in mixed precision; the other tools switch it on for that."""
    kinds = {"bfloat16": "bf16", "float16": "fp16"}
    kind = kinds.get(str(t.value("model.dtype")))
    if t.selected("deepspeed") and kind and not t.value("train.bf16") and not t.value("train.fp16"):
        t.put(f"train.{kind}", True, "deepspeed")
