"""Adapters of the peft library: LoRA and its other methods."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from sftkit.api import (
    CHECKPOINTING_KEYS,
    ConfigError,
    Field,
    Plugin,
    Problem,
    dataclass,
    has_adapter,
    hookimpl,
    is_adapter,
    linear_names,
    parts_of,
)
from sftkit_plugins.peft.config import ALIASES, default_of, fields_of, from_fields, from_options
from sftkit_plugins.peft.names import (
    adaptable,
    adapted_twins,
    check_names,
    is_tied,
    report_frozen,
    unsuited_layers,
    without_pattern_warnings,
)
from sftkit_plugins.peft.targets import gptq_targets, part_targets, parts_named, token_fields, without_unsuited

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback

    from sftkit.api import RunConfig


@dataclass(frozen=True, kw_only=True)
class PEFT(Plugin):
    """Trains an adapter instead of all weights: LoRA (Hu et al., 2021), or any method of peft."""

    requires: ClassVar[tuple[str, ...]] = ("peft>=0.18",)

    method: Annotated[str, Field(description="lora, ia3, vera, adalora, prompt_tuning, ...: any method of peft")] = (
        "lora"
    )
    r: Annotated[int | None, Field(gt=0, description="rank; for LoRA 16 by default")] = None
    alpha: Annotated[
        float | None, Field(gt=0, description="the update is scaled by alpha/r; for LoRA 2r by default")
    ] = None
    dropout: Annotated[
        float | None, Field(ge=0, lt=1, description="dropout of the adapter's input; for LoRA 0 by default")
    ] = None
    target_modules: Annotated[
        str | list[str] | None,
        Field(
            description="layer names, a regular expression that matches whole names, or all-linear: all but the "
            "head; the default of most methods"
        ),
    ] = None
    target_parameters: Annotated[
        list[str] | None,
        Field(
            description="LoRA: weights outside linear layers, such as those of experts: `[experts.gate_up_proj, "
            "experts.down_proj]`"
        ),
    ] = None
    part: Annotated[
        Literal["language", "vision", "both"],
        Field(description="of an image-text model, the part in which target_modules names layers"),
    ] = "language"
    options: Annotated[dict[str, Any], Field(description="further fields of the method's config in peft")] = (
        dataclasses.field(default_factory=dict)
    )
    config: Annotated[
        dict[str, Any] | None,
        BeforeValidator(fields_of),
        Field(
            description="replaces all other options: the fields of a `peft.PeftConfig`, with `peft_type`; in "
            "Python also the object"
        ),
    ] = None

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Methods and options that peft does not have, a second adapter, and prompts before packed rows."""
        if is_adapter(config.model.name):
            what = f"{config.model.name!r} is already an adapter, and plugin peft would add a second one"
            yield Problem(what, "model.name", "drop plugin peft to train the adapter further", ("model", "name"))
        try:
            peft_config = self._peft_config()
        except ConfigError as error:
            yield from error.problems
            return
        if peft_config.is_prompt_learning and "packing" in config.plugins:
            what = "the method puts its prompt before each row, but a packed row holds several documents"
            yield Problem(what, "plugin peft, option method", "drop plugin packing, or use method lora")
        keys = [key for key in CHECKPOINTING_KEYS if config.train.get(key)]
        if peft_config.peft_type.value == "PREFIX_TUNING" and keys:
            what = "prefix tuning needs the cache, which checkpointed layers do not use"
            yield Problem(what, f"train.{keys[0]}", "remove it, or use method lora", ("train", keys[0]))

    def _peft_config(self, **more: Any) -> Any:
        """The method's config, checked against its fields; ``more`` overrides the options.

        Raises:
            ConfigError: for an unknown method or field, a value that peft refuses, or options together with ``config``.
        """
        if self.config is None:
            return from_options(self.method, {name: getattr(self, name) for name in ALIASES}, self.options, **more)
        others = [field for field in dataclasses.fields(self) if field.name != "config"]
        if problems := [
            Problem(
                "not allowed together with option config", f"plugin peft, option {field.name}", "remove one of them"
            )
            for field in others
            if getattr(self, field.name) != default_of(field)
        ]:
            raise ConfigError(problems)
        return from_fields(self.config, **more)

    @hookimpl
    def adapt_model(self, model: PreTrainedModel, config: RunConfig, new_token_ids: list[int]) -> Any:
        """The model with an adapter and its own weights frozen. Changes the model.

        Raises:
            ConfigError: if the model already has an adapter, no layer matches, or the method cannot train new tokens.
        """
        from peft import get_peft_model

        if has_adapter(model):
            what = "the model already has an adapter, and plugin peft would add a second one"
            raise ConfigError(Problem(what, "plugin peft", "drop plugin peft to train the adapter further"))
        wanted = self._peft_config()
        check_names(model, wanted, new_token_ids)
        tied = is_tied(model)
        all_linear = getattr(wanted, "target_modules", None) == "all-linear"
        more = {} if self.config else part_targets(model, wanted, self.part, _projectors(config))
        known = adaptable(model, _modules(model, self.part, config) if more else None)
        more = more or gptq_targets(model, wanted) or without_unsuited(wanted, unsuited_layers(model))
        if new_token_ids:
            more |= token_fields(model, wanted, sorted(new_token_ids))
        peft_config = self._peft_config(**more)
        layers = f"set target_modules; the linear layers are {', '.join(linear_names(model))}"
        try:
            with without_pattern_warnings(wanted):
                adapted = get_peft_model(model, peft_config)
        except (ValueError, TypeError, NotImplementedError, ImportError) as error:
            fix = layers if hasattr(peft_config, "target_modules") else "correct the plugin's options"
            if "lora_dropout" in str(error):  # of experts, whose weights are parameters and no layers
                fix = "set dropout=0, or name linear layers alone in target_modules"
            raise ConfigError(Problem(" ".join(str(error).split()), "plugin peft", fix)) from error
        if tied and (problem := adapted_twins(adapted)):
            raise ConfigError(problem)
        if all_linear:
            report_frozen(adapted, *known)
        if new_token_ids:
            # peft would save the whole resized embeddings beside the rows that the adapter holds
            adapted.save_pretrained = functools.partial(adapted.save_pretrained, save_embedding_layers=False)
        trained, total = adapted.get_nb_trainable_parameters()
        name = {"LORA": "LoRA"}.get(peft_config.peft_type.value, peft_config.peft_type.value)
        share = f"{trained:,} trainable of {total:,} parameters ({100 * trained / total:.1f} %)"
        logging.getLogger("sftkit").info("peft: %s, %s", name, share)
        return adapted

    @hookimpl
    def trainer_callbacks(self) -> list[TrainerCallback]:
        """One that lets AdaLoRA reallocate its ranks after each step; none for other methods."""
        return [_rank_allocation()] if self._peft_config().peft_type.value == "ADALORA" else []


def _projectors(config: RunConfig) -> list[str]:
    """Names of projector modules inside the vision tower, as plugin vision knows them."""
    return config.plugins.get("vision", {}).get("projector_modules", [])


def _modules(model: PreTrainedModel, part: str, config: RunConfig) -> set[str]:
    """Names of the modules of the chosen parts of an image-text model."""
    chosen = parts_named(part)
    return {name for name, found in parts_of(model, _projectors(config)).items() if found in chosen}


def _rank_allocation() -> TrainerCallback:
    from transformers import TrainerCallback

    class RankAllocation(TrainerCallback):  # type: ignore[misc]
        """Calls AdaLoRA's ``update_and_allocate`` after each optimizer step, before the gradients are cleared."""

        def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
            model.base_model.update_and_allocate(state.global_step)

    return RankAllocation()
