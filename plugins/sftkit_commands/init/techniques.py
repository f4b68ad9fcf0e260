"""What is trained, and by which optimizer: LoRA+, Muon, frozen weights, Spectrum and LISA of the other tools."""

from __future__ import annotations

import re

from sftkit_commands.init.local import Places
from sftkit_commands.init.translation import Translation

_ENGINES = ("deepspeed", "fsdp", "tensor_parallel")
#: What tables of embeddings are called in models.
_TABLES = ("embed", "wte", "wpe")
_RANGE = re.compile(r"\[\d*(:\d*)?\]$")


def lora_plus(t: Translation, kind: str, embeddings: str) -> None:
    """LoRA+, with the rate that both tools give to adapters of embeddings.

    Args:
        kind: the method of the tool, such as ``lora``.
        embeddings: a regular expression of the weights that have this rate.
    """
    ratio, key, of_tables = t.get("loraplus_lr_ratio"), "loraplus_lr_ratio", "loraplus_lr_embedding"
    on = t.pending(key) and bool(ratio) and kind in ("lora", "qlora")
    if on and float(ratio) < 1:
        t.lose(key, "a ratio below 1 is not LoRA+", "plugin optimizer, groups: {lora_B: {factor: ...}}")
    elif on and (t.selected("deepspeed") or t.selected("muon")):
        t.lose(key, "another optimizer is used", "shard by plugin fsdp, or drop plugin muon")
    elif on:
        note = "DoRA's magnitudes keep the plain rate" if t.get("use_dora") or t.get("peft_use_dora") else ""
        t.select("optimizer")
        t.move(key, "plugins.optimizer.lora_plus", float(ratio), note)
        targets = t.value("plugins.peft.target_modules", [])
        if isinstance(targets, list) and any(table in str(name) for name in targets for table in _TABLES):
            t.put("plugins.optimizer.groups", {embeddings: {"learning_rate": float(t.get(of_tables, 1e-6))}}, of_tables)
            t.translated(of_tables, "plugins.optimizer.groups")
    elif t.pending(key):
        t.always(key, "it is off, or nothing is trained by LoRA")
    if t.pending(of_tables):
        t.always(of_tables, "no embeddings are adapted, or LoRA+ is not used")


def muon(t: Translation) -> None:
    """LLaMA-Factory's Muon, whose updates are scaled as those of plugin muon by default."""
    if not t.pending("use_muon"):
        return
    if not t.get("use_muon"):
        t.always("use_muon", "it is off")
    elif any(map(t.selected, _ENGINES)):
        t.lose(
            "use_muon", "Muon needs whole matrices, and the model is sharded", "train without the plugin that shards"
        )
    else:
        t.select("muon")
        t.translated("use_muon", "plugins.muon", "norms and biases are not decayed" if t.get("weight_decay") else "")
        t.drop("train.optim")
        for key in ("optim", "optim_args", "optim_target_modules"):
            t.entries.pop(key, None)
            t.always(key, "Muon takes its place")


def lisa(t: Translation) -> None:
    """Axolotl's LISA, which keeps the optimizer's state of frozen layers."""
    layers, interval = "lisa_n_layers", "lisa_step_interval"
    on = t.get(layers) and t.get(interval)
    if on and any(map(t.selected, _ENGINES)):
        for key in (layers, interval):
            t.lose(key, "LISA cannot change the layers of a sharded model", "train without the plugin that shards")
    elif on:
        t.move(layers, "plugins.lisa.layers", int(t.get(layers)), "which layers are drawn differs")
        t.move(interval, "plugins.lisa.interval", int(t.get(interval)))
        t.default("plugins.lisa.keep_state", True)
    for key in [key for key in (layers, interval) if t.pending(key)]:
        t.always(key, f"LISA is off without both {layers} and {interval}")
    if t.pending("lisa_layers_attribute"):
        t.always("lisa_layers_attribute", "the layers are found in the model")


def unfrozen(t: Translation) -> None:
    """Axolotl's patterns of the weights that are trained, and its Spectrum."""
    given, spectrum = t.get("unfrozen_parameters"), [key for key in t.given if _is_spectrum(t, key)]
    patterns = [str(each) for each in (given if isinstance(given, list) else [given] if given else [])]
    adapted = t.has("plugins.peft") or t.get("lora_model_dir")
    if t.pending("unfrozen_parameters") and not patterns:
        t.always("unfrozen_parameters", "it is empty")
    elif spectrum:
        t.always("unfrozen_parameters", "Spectrum's choice replaces it")
    elif patterns and adapted:
        fix = "plugin peft, options.modules_to_save"
        t.lose("unfrozen_parameters", "an adapter has its own choice of what is trained", fix)
    elif any(map(_RANGE.search, patterns)):
        t.lose("unfrozen_parameters", "single rows of a weight cannot be frozen", "plugin freeze, train")
    elif patterns:
        note = "a pattern that matches nothing is an error"
        t.move("unfrozen_parameters", "plugins.freeze.train", [_from_start(each) for each in patterns], note)
    _spectrum(t, spectrum, bool(adapted))


def _is_spectrum(t: Translation, key: str) -> bool:
    return bool(re.fullmatch(r"plugins\[\d+\]", key)) and str(t.get(key)).endswith(".SpectrumPlugin")


def _from_start(pattern: str) -> str:
    """A pattern of Axolotl, whose dots are plain ones, and which matches the start of a name."""
    plain = re.sub(r"(?<!\\)\.(?!\+)", r"\\.", pattern).removeprefix("^")
    return f"^(?:{plain})" if "|" in plain else f"^{plain}"


def _spectrum(t: Translation, plugins: list[str], adapted: bool) -> None:
    key, share = "spectrum_top_fraction", float(t.get("spectrum_top_fraction", 0.5))
    if plugins and adapted:
        t.lose(plugins[0], "an adapter has its own choice of what is trained", "train without an adapter")
    elif plugins and not 0 < share < 1:
        t.lose(plugins[0], f"{share:g} is no share of the layers", "plugin freeze, spectrum: 0.5")
    elif plugins:
        t.put("plugins.freeze.spectrum", share, key if key in t.given else plugins[0])
        note = "ratios are computed from the weights, and norms stay frozen"
        t.translated(plugins[0], "plugins.freeze.spectrum", note)
        t.translated(key, "plugins.freeze.spectrum")
    for name in [*plugins[1:], key, "spectrum_model_name"]:
        if t.pending(name):
            t.always(name, "it does nothing by itself")


def last_layers(t: Translation, places: Places, modules: list[str], extra: list[str]) -> None:
    """LLaMA-Factory's ``finetuning_type: freeze``: the last layers are trained, or the first ones.

    Args:
        modules: the parts of the layers that are trained; ``all`` for whole layers.
        extra: names of further parts.
    """
    number = int(t.get("freeze_trainable_layers", 2))
    total = places.layers(t.get("model_name_or_path"))
    keys = ("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules")
    if t.get("use_llama_pro") or (number > 0 and not total):
        why = (
            "layers of LLaMA Pro"
            if t.get("use_llama_pro")
            else "the number of layers is in the model, which is not here"
        )
        fix = r"name the layers in plugin freeze, as in train: ['\.(30|31)\.']"
        for key in ("finetuning_type", *keys):
            t.lose(key, f"{why}, so all weights are trained" if key == "finetuning_type" else why, fix)
        return
    layers = range(max(0, total - number), total) if number > 0 else range(min(-number, total or -number))
    t.put("plugins.freeze.train", _patterns(list(layers), modules, extra), "finetuning_type")
    for key in ("finetuning_type", *keys):
        t.translated(key, "plugins.freeze.train")


def _patterns(layers: list[int], modules: list[str], extra: list[str]) -> list[str]:
    parts = "" if "all" in modules else f"(?:{'|'.join(map(re.escape, modules))})"
    numbers = [rf"\.(?:{'|'.join(map(str, layers))})\.{parts}"] if layers else []
    return [*numbers, *map(re.escape, extra)]
