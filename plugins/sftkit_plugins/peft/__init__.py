"""Adapters of the peft library: LoRA and every other method it has."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from sftkit.api import (
    ConfigError,
    Field,
    Plugin,
    Problem,
    dataclass,
    hookimpl,
    is_adapter,
    is_linear,
    linear_names,
    parts_of,
    save_adapter_only,
)
from sftkit_plugins.peft.config import ALIASES, default_of, fields_of, from_fields, from_options

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback

    from sftkit.api import RunConfig


@dataclass(frozen=True, kw_only=True)
class PEFT(Plugin):
    """Adapters instead of all weights: LoRA (Hu et al., 2021), or any method of peft."""

    requires: ClassVar[tuple[str, ...]] = ("peft>=0.18",)

    method: Annotated[str, Field(description="lora, ia3, vera, prompt_tuning, ...: any method of peft")] = "lora"
    r: Annotated[int | None, Field(gt=0, description="rank; for LoRA 16 by default")] = None
    alpha: Annotated[float | None, Field(gt=0, description="scale is alpha/r; for LoRA 2r by default")] = None
    dropout: Annotated[float | None, Field(ge=0, lt=1, description="on adapter inputs; for LoRA 0 by default")] = None
    target_modules: Annotated[
        str | list[str] | None,
        Field(description="names of layers, a regular expression or all-linear, the default where the method allows"),
    ] = None
    part: Annotated[
        Literal["language", "vision", "both"],
        Field(description="of a model that sees pictures, the part whose layers target_modules names"),
    ] = "language"
    options: Annotated[dict[str, Any], Field(description="further fields of the method's config in peft")] = (
        dataclasses.field(default_factory=dict)
    )
    config: Annotated[
        dict[str, Any] | None,
        BeforeValidator(fields_of),
        Field(description="instead of all other options: a `peft.PeftConfig`, or its fields, `peft_type` among them"),
    ] = None

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """A method or option that peft does not have, a second adapter, and prompts before packed rows."""
        if is_adapter(config.model.name):
            what = f"{config.model.name!r} is an adapter already, and plugin peft would add a second one"
            yield Problem(what, "model.name", "drop plugin peft to train the adapter further", ("model", "name"))
        try:
            peft_config = self._peft_config()
        except ConfigError as error:
            yield from error.problems
            return
        if peft_config.is_prompt_learning and "packing" in config.plugins:
            what = "the method puts its prompt in front of a row, and a packed row holds several documents"
            yield Problem(what, "plugin peft, option method", "drop plugin packing, or use lora")
        keys = [key for key in ("gradient_checkpointing", "activation_checkpointing") if config.train.get(key)]
        if peft_config.peft_type.value == "PREFIX_TUNING" and keys:
            what = "prefix tuning goes through the cache, which checkpointed layers do not use"
            yield Problem(what, f"train.{keys[0]}", "turn it off, or use lora", ("train", keys[0]))

    def _peft_config(self, **more: Any) -> Any:
        """The method's config, checked against its fields; ``more`` goes before what the options say.

        Raises:
            ConfigError: for an unknown method or field, a value that peft refuses, or options beside ``config``.
        """
        if self.config is None:
            return from_options(self.method, {name: getattr(self, name) for name in ALIASES}, self.options, **more)
        beside = [field for field in dataclasses.fields(self) if field.name != "config"]
        if problems := [
            Problem("option config says all there is", f"plugin peft, option {field.name}", "drop one of the two")
            for field in beside
            if getattr(self, field.name) != default_of(field)
        ]:
            raise ConfigError(problems)
        return from_fields(self.config, **more)

    @hookimpl
    def adapt_model(self, model: PreTrainedModel, new_token_ids: list[int]) -> Any:
        """The model with adapters on it, its own weights frozen. Changes the model.

        Raises:
            ConfigError: if the model has an adapter already, no layer matches, or the method cannot train new tokens.
        """
        from peft import get_peft_model

        if hasattr(model, "peft_config"):
            what = "the model has an adapter already, and plugin peft would add a second one"
            raise ConfigError(Problem(what, "plugin peft", "drop plugin peft to train the adapter on"))
        more = _named_targets(model, self._peft_config(), None if self.config else self.part)
        if new_token_ids:
            more |= _train_tokens(model, self._peft_config(), sorted(new_token_ids))
        peft_config = self._peft_config(**more)
        layers = f"set target_modules; the linear layers are {', '.join(linear_names(model))}"
        try:
            adapted = get_peft_model(model, peft_config)
        except (ValueError, TypeError, NotImplementedError, ImportError) as error:
            fix = layers if hasattr(peft_config, "target_modules") else "correct the plugin's options"
            raise ConfigError(Problem(" ".join(str(error).split()), "plugin peft", fix)) from error
        if new_token_ids:
            save_adapter_only(adapted)
        trained, total = adapted.get_nb_trainable_parameters()
        name = {"LORA": "LoRA"}.get(peft_config.peft_type.value, peft_config.peft_type.value)
        share = f"{trained:,} trainable of {total:,} parameters ({100 * trained / total:.1f} %)"
        logging.getLogger("sftkit").info("peft: %s, %s", name, share)
        return adapted

    @hookimpl
    def trainer_callbacks(self) -> list[TrainerCallback]:
        """AdaLoRA moves its ranks about after each step; other methods need nothing."""
        return [_rank_allocation()] if self._peft_config().peft_type.value == "ADALORA" else []


def _named_targets(model: PreTrainedModel, peft_config: Any, part: str | None) -> dict[str, Any]:
    """The layers by name, where peft would not choose them as they are meant: those of one part, or of GPTQ.

    Args:
        part: of a model that sees pictures; None where the config says all there is.

    Raises:
        ConfigError: if the model has no such part.
    """
    wanted = getattr(peft_config, "target_modules", None)
    parts = {} if part is None else parts_of(model)
    sees, by_name = "vision" in parts.values(), wanted == "all-linear" or isinstance(wanted, list | set | tuple)
    if part is not None and sees and by_name:
        chosen = ("language", "vision") if part == "both" else (part,)
        return {"target_modules": "|".join(_pattern(model, parts, each, wanted) for each in chosen)}
    if part in ("vision", "both") and not sees:
        what = f"{type(model).__name__} sees no pictures, and has only a language part"
        raise ConfigError(Problem(what, "plugin peft, option part", "drop the option"))
    # GPTQ's layers are no linear ones to peft.
    if wanted != "all-linear" or getattr(model, "quantization_method", None) != "gptq":
        return {}
    head = model.get_output_embeddings()
    heads = {name.rpartition(".")[2] for name, module in model.named_modules() if module is head}
    return {"target_modules": [name for name in linear_names(model) if name not in heads]}


def _pattern(model: PreTrainedModel, parts: dict[str, Any], part: str, wanted: Any) -> str:
    """A regular expression for the linear layers of a part, all but the head or those of the names wanted."""
    head = model.get_output_embeddings()
    modules = {name: module for name, module in model.named_modules() if parts.get(name) == part and module is not head}
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
    """The module that holds all of these."""
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return ".".join(level[0] for level in itertools.takewhile(lambda level: len({*level}) == 1, levels))


def _train_tokens(model: PreTrainedModel, peft_config: Any, ids: list[int]) -> dict[str, Any]:
    """The config fields by which the embeddings of new tokens are trained and saved.

    Only these rows where the method can (an output head with a bias cannot), else the whole layers.

    Raises:
        ConfigError: if the method can do neither, or other tokens' rows are asked for.
    """
    if getattr(peft_config, "trainable_token_indices", None):
        what = f"trainable_token_indices is set, and the {len(ids)} new tokens are to be trained by it too"
        fix = "drop it, or the plugin that adds the tokens"
        raise ConfigError(Problem(what, "plugin peft", fix))
    names = {id(module): name for name, module in model.named_modules()}
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    tied = head is None or head.weight is embedding.weight
    has_bias = getattr(head, "bias", None) is not None
    fields = {field.name for field in dataclasses.fields(peft_config)}
    modules = list(getattr(peft_config, "modules_to_save", None) or [])
    layers = [names[id(embedding)]] if tied else [names[id(embedding)], names[id(head)]]
    taken = [layer for layer in layers if layer.rpartition(".")[2] in {name.rpartition(".")[2] for name in modules}]
    layers = [layer for layer in layers if layer not in taken]
    if "trainable_token_indices" in fields and not (tied and has_bias):
        by_row = [layer for layer in layers if layer == names[id(embedding)] or not has_bias]
        whole = modules + [layer for layer in layers if layer not in by_row]
        tokens = {"trainable_token_indices": dict.fromkeys(by_row, ids)} if by_row else {}
        return tokens | ({"modules_to_save": whole} if whole else {})
    # A prompt is embedded by the frozen layer, and a tied pair would come apart into two copies.
    if "modules_to_save" in fields and not tied and not peft_config.is_prompt_learning:
        return {"modules_to_save": modules + layers}
    what = f"{peft_config.peft_type.value} cannot train the embeddings of the {len(ids)} new tokens of this model"
    fix = "use method lora, or drop the plugin that adds the tokens"
    raise ConfigError(Problem(what, "plugin peft, option method", fix))


def _rank_allocation() -> TrainerCallback:
    from transformers import TrainerCallback

    class RankAllocation(TrainerCallback):  # type: ignore[misc]
        """Calls AdaLoRA's ``update_and_allocate`` after each optimizer step, while the gradients are still there."""

        def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
            model.base_model.update_and_allocate(state.global_step)

    return RankAllocation()
