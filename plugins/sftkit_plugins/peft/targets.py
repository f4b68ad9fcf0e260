"""Which layers of a model get adapters, and how the embeddings of new tokens are trained."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from sftkit.api import ConfigError, Problem, is_linear, linear_names, parts_of
from sftkit_plugins.peft.names import unsuited_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def parts_named(part: str) -> tuple[str, ...]:
    """The parts that the option ``part`` names."""
    return ("language", "vision") if part == "both" else (part,)


def part_targets(
    model: PreTrainedModel, peft_config: Any, part: str, projectors: Collection[str] = ()
) -> dict[str, Any]:
    """The config field that limits layers given by name to a part of an image-text model; none for other models.

    Args:
        model: the base model.
        peft_config: says which layers are wanted.
        part: ``language``, ``vision`` or ``both``.
        projectors: names of projector modules inside the vision tower.

    Raises:
        ConfigError: if the model has no such part, or the part no such layer.
    """
    wanted = getattr(peft_config, "target_modules", None)
    parts = parts_of(model, projectors)
    if "vision" not in parts.values():
        if part == "language":
            return {}
        what = f"{type(model).__name__} has no vision part"
        raise ConfigError(Problem(what, "plugin peft, option part", "remove the option"))
    if wanted != "all-linear" and not isinstance(wanted, list | set | tuple):
        return {}
    chosen = parts_named(part)
    return {"target_modules": "|".join(_pattern(model, parts, each, wanted) for each in chosen)}


def without_unsuited(peft_config: Any, unsuited: list[str]) -> dict[str, Any]:
    """The config field that keeps ``all-linear`` from layers that only derive from linear ones."""
    excluded = getattr(peft_config, "exclude_modules", "")  # methods without the field adapt few layers
    if not unsuited or isinstance(excluded, str) or getattr(peft_config, "target_modules", None) != "all-linear":
        return {}
    return {"exclude_modules": sorted({*(excluded or ()), *unsuited})}


def gptq_targets(model: PreTrainedModel, peft_config: Any) -> dict[str, Any]:
    """The config field that names the linear layers of a GPTQ model, which peft does not recognise as linear."""
    if getattr(peft_config, "target_modules", None) != "all-linear":
        return {}
    if getattr(model, "quantization_method", None) != "gptq":
        return {}
    head = model.get_output_embeddings()
    heads = {name.rpartition(".")[2] for name, module in model.named_modules() if module is head}
    return {"target_modules": [name for name in linear_names(model) if name not in heads]}


def _pattern(model: PreTrainedModel, parts: dict[str, Any], part: str, wanted: Any) -> str:
    """A regular expression for the linear layers of a part: all of them but the head, or those of the wanted names."""
    others = {id(model.get_output_embeddings()), *(id(model.get_submodule(name)) for name in unsuited_layers(model))}
    modules = {
        name: module for name, module in model.named_modules() if parts.get(name) == part and id(module) not in others
    }
    names = [name for name, module in modules.items() if is_linear(module)]
    if wanted != "all-linear":
        names = [name for name in names if any(f".{name}".endswith(f".{each}") for each in wanted)]
    if not names:
        what = f"no linear layer of the {part} part is called {', '.join(sorted(wanted))}"
        fix = f"set target_modules; the linear layers are {', '.join(linear_names(model))}"
        raise ConfigError(Problem(what, "plugin peft, option target_modules", fix))
    inside = _common(names)
    last = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    pattern = rf"{re.escape(inside)}\.(?:.*\.)?(?:{'|'.join(map(re.escape, last))})"
    matched = [name for name, module in model.named_modules() if is_linear(module) and re.fullmatch(pattern, name)]
    return pattern if matched == names else "|".join(map(re.escape, names))


def _common(names: list[str]) -> str:
    """The innermost module that contains all of these."""
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return ".".join(level[0] for level in itertools.takewhile(lambda level: len({*level}) == 1, levels))


def token_fields(model: PreTrainedModel, peft_config: Any, ids: list[int]) -> dict[str, Any]:
    """The config fields by which the embeddings of new tokens are trained and saved.

    Only the rows of the new tokens where the method can do that (not for an output head with a bias), else the whole
    layers.

    Raises:
        ConfigError: if the method can do neither, or the config already trains rows of other tokens.
    """
    if getattr(peft_config, "trainable_token_indices", None):
        what = f"trainable_token_indices is set, but the {len(ids)} new tokens must be trained by it too"
        raise ConfigError(Problem(what, "plugin peft", "remove it, or drop the plugin that adds the tokens"))
    names = {id(module): name for name, module in model.named_modules()}
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    tied = head is None or head.weight is embedding.weight
    has_bias = getattr(head, "bias", None) is not None
    fields = {field.name for field in dataclasses.fields(peft_config)}
    modules = list(getattr(peft_config, "modules_to_save", None) or [])
    layers = [names[id(embedding)]] if tied else [names[id(embedding)], names[id(head)]]
    saved = {name.rpartition(".")[2] for name in modules}
    layers = [layer for layer in layers if layer.rpartition(".")[2] not in saved]
    if "trainable_token_indices" in fields and not (tied and has_bias):
        by_row = [layer for layer in layers if layer == names[id(embedding)] or not has_bias]
        whole = modules + [layer for layer in layers if layer not in by_row]
        tokens = {"trainable_token_indices": dict.fromkeys(by_row, ids)} if by_row else {}
        return tokens | ({"modules_to_save": whole} if whole else {})
    # A prompt is embedded by the frozen layer, and two tied layers would become separate copies.
    if "modules_to_save" in fields and not tied and not peft_config.is_prompt_learning:
        return {"modules_to_save": modules + layers}
    what = f"{peft_config.peft_type.value} cannot train the embeddings of the {len(ids)} new tokens of this model"
    fix = "use method lora, or drop the plugin that adds the tokens"
    raise ConfigError(Problem(what, "plugin peft, option method", fix))
