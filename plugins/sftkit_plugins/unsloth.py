"""Unsloth: its loader, kernels and LoRA instead of those of transformers and peft."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from sftkit.api import (
    CHECKPOINTING_KEYS,
    MODEL_KEYS,
    ConfigError,
    Field,
    Plugin,
    Problem,
    UnknownMemoryError,
    as_config_error,
    base_options,
    dataclass,
    has_adapter,
    hookimpl,
    misplaced_options,
    nearest,
    train_value,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sftkit.api import RunConfig

logger = logging.getLogger("sftkit")
Positive = Annotated[int, Field(gt=0)]
#: Further exceptions that unsloth raises for unsuitable names and options.
REFUSALS = (AssertionError, NotImplementedError)
#: Options for the precision of the weights, of which at most one is set; 16-bit LoRA if none is.
MODES = ("load_in_4bit", "load_in_8bit", "load_in_16bit", "full_finetuning")
#: Options of the adapter, by unsloth's names.
ADAPTER = (
    *("r", "lora_alpha", "lora_dropout", "bias", "target_modules", "layers_to_transform", "modules_to_save"),
    *("use_rslora", "loftq_config"),
)
_OWN_OPTIONS = (*MODES, "dtype", "max_seq_length", "random_state", "use_gradient_checkpointing")
#: Arguments of unsloth's loader that must be set elsewhere, and where.
LOADING = {
    **MODEL_KEYS,
    **{name: f"set option {name} of plugin unsloth" for name in _OWN_OPTIONS},
    "model_name": "set model.name",
    "fast_inference": "remove it; a run generates too little for a second engine in the GPU's memory",
    "rope_parameters": "remove it, or drop plugin unsloth, which scales positions itself from its max_seq_length",
    "attn_implementation": "remove it; unsloth chooses its attention itself and ignores this",
}


@dataclass(frozen=True, kw_only=True)
class Unsloth(Plugin):
    """Loads and adapts the model with unsloth, whose kernels make LoRA on one GPU faster and save memory."""

    requires: ClassVar[tuple[str, ...]] = ("unsloth>=2026.10.9",)
    needs_gpu: ClassVar[bool] = True
    conflicts: ClassVar[tuple[str, ...]] = (
        "activations",
        "bitsandbytes",
        "compile",
        "flash_attn",
        "gptq",
        "liger",
        "peft",
    )
    import_first: ClassVar[tuple[str, ...]] = ("unsloth",)

    load_in_4bit: Annotated[bool, Field(description="4-bit weights (QLoRA); unsloth's own default is true")] = False
    load_in_8bit: Annotated[bool, Field(description="8-bit weights")] = False
    load_in_16bit: Annotated[
        bool, Field(description="16-bit weights, even if unsloth would use a quantized checkpoint")
    ] = False
    full_finetuning: Annotated[bool, Field(description="train every weight, without an adapter")] = False
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"] | None,
        Field(description="type to compute in; by default model.dtype if it has 16 bits, else unsloth's choice"),
    ] = None
    max_seq_length: Annotated[Positive | None, Field(description="number of positions; by default data.max_length")] = (
        None
    )
    r: Annotated[Positive, Field(description="rank")] = 16
    lora_alpha: Annotated[float, Field(gt=0, description="the update is scaled by lora_alpha/r")] = 16
    lora_dropout: Annotated[float, Field(ge=0, lt=1, description="dropout of the adapter's input; 0 is faster")] = 0.0
    bias: Annotated[Literal["none", "all", "lora_only"], Field(description="biases to train; none is faster")] = "none"
    target_modules: Annotated[
        str | list[str] | None,
        Field(description="layer names, or all-linear; by default the projections of attention and MLP"),
    ] = None
    layers_to_transform: Annotated[
        list[int] | int | None, Field(description="numbers of the layers to adapt; by default all")
    ] = None
    modules_to_save: Annotated[list[str] | None, Field(description="layers trained in full, besides the adapter")] = (
        None
    )
    use_rslora: Annotated[bool, Field(description="scale the update by lora_alpha/sqrt(r) instead")] = False
    loftq_config: Annotated[
        dict[str, Any] | None, Field(description="fields of peft's LoftQConfig; turns LoftQ initialisation on")
    ] = None
    use_gradient_checkpointing: Annotated[
        bool | Literal["unsloth"], Field(description="true, false, or unsloth, which offloads activations too")
    ] = "unsloth"
    random_state: Annotated[int | None, Field(description="seed of the adapter's weights; by default train.seed")] = (
        None
    )
    options: Annotated[
        dict[str, Any], Field(description="further arguments of get_peft_model, checked against the installed version")
    ] = dataclasses.field(default_factory=dict)

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Options that exclude each other, that unsloth does not have, or that it would ignore."""
        modes = [name for name in MODES if getattr(self, name)]
        if len(modes) > 1:
            what = f"{' and '.join(modes)} exclude each other"
            yield Problem(what, f"plugin unsloth, option {modes[1]}", "keep one of them")
        if self.full_finetuning:
            yield from self._adapter_problems()
        dtype = config.model.dtype
        if self.dtype not in (None, dtype) and dtype in ("bfloat16", "float16"):
            what = f"model.dtype is {dtype}, but the plugin's dtype is {self.dtype}"
            yield Problem(what, "plugin unsloth, option dtype", "set only one of them")
        if config.model.init == "random":
            yield Problem("unsloth cannot create random weights", "model.init", "remove it", ("model", "init"))
        for key in CHECKPOINTING_KEYS:
            if config.train.get(key):
                fix = "remove it; use_gradient_checkpointing of plugin unsloth is on unless set to false"
                yield Problem("unsloth checkpoints activations itself", f"train.{key}", fix, ("train", key))
        yield from misplaced_options(base_options(config.model.name) | config.model.options, LOADING)
        yield from self._option_problems()

    def _adapter_problems(self) -> Iterator[Problem]:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in (*ADAPTER, "options"):
            if getattr(self, name) not in (defaults[name], {}):
                what = "full_finetuning trains without an adapter"
                yield Problem(what, f"plugin unsloth, option {name}", "remove it, or full_finetuning")

    def _option_problems(self) -> Iterator[Problem]:
        if not self.options:
            return
        known = adapter_arguments()
        own = {*ADAPTER, "model", "random_state", "max_seq_length", "use_gradient_checkpointing"}
        for name in self.options:
            where = f"plugin unsloth, option options.{name}"
            if name in own:
                yield Problem(
                    "set by the plugin itself",
                    where,
                    "use the plugin's own option, or remove it",
                )
            elif name not in known:
                fix = nearest(name, known) or f"use one of {', '.join(sorted(known - own))}"
                yield Problem("unsloth's get_peft_model has no such argument", where, fix)

    @hookimpl
    def load_model(self, config: RunConfig, options: Mapping[str, Any]) -> PreTrainedModel:
        """The model as unsloth loads it; unsloth's tokenizer is not used, since the run's has prepared the data.

        Raises:
            ConfigError: if unsloth cannot load it, or would ignore an option of another plugin.
        """
        from unsloth import FastLanguageModel

        if problems := list(misplaced_options(options, LOADING, "model options")):
            raise ConfigError(problems)
        arguments = self._loading_arguments(config)
        with _trainer_kept(), as_config_error("model", *REFUSALS):
            model, _ = FastLanguageModel.from_pretrained(**arguments, **options)
        mode = next((name for name in MODES if getattr(self, name)), "16-bit LoRA")
        logger.info("unsloth: %s, %s, %s", type(model).__name__, mode, model.dtype)
        return model

    def _loading_arguments(self, config: RunConfig) -> dict[str, Any]:
        dtype = config.model.dtype
        wanted = self.dtype or (dtype if dtype in ("bfloat16", "float16") else "auto")
        return {
            "model_name": config.model.name,
            "revision": config.model.revision,
            "trust_remote_code": config.model.trust_remote_code,
            "max_seq_length": self.max_seq_length or config.data.max_length,
            "dtype": None if wanted == "auto" else _torch_dtype(wanted),
            **{name: getattr(self, name) for name in MODES},
            "use_gradient_checkpointing": self.use_gradient_checkpointing,
            "random_state": self._seed(config),
            "fast_inference": False,
            "use_safetensors": True,
        }

    def _seed(self, config: RunConfig) -> int:
        return int(train_value(config, "seed")) if self.random_state is None else self.random_state

    @hookimpl
    def attach_adapter(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model unchanged: unsloth has loaded it with its adapter."""
        return model

    @hookimpl
    def prepare_base(self) -> bool:
        """Does nothing: unsloth has prepared the base."""
        return True

    @hookimpl
    def adapt_model(self, model: Any, config: RunConfig, new_token_ids: list[int]) -> Any:
        """The model with unsloth's LoRA; unchanged if it has an adapter already, or is trained in full.

        Raises:
            ConfigError: if unsloth did not load the model, or refuses the options.
            UnknownMemoryError: for a model without weights, whose memory is to be estimated.
        """
        if model.device.type == "meta":
            raise UnknownMemoryError("unsloth adapts only models that it has loaded")
        from unsloth import FastLanguageModel

        if not hasattr(model, "max_seq_length"):
            what = "the model is already loaded, but unsloth can only train models that it loads"
            raise ConfigError(Problem(what, "model", "pass the model's name"))
        if self.full_finetuning:
            return model
        if has_adapter(model):
            logger.info("unsloth: the adapter of %s is trained further, with its own options", config.model.name)
            return model
        with _trainer_kept(), as_config_error("plugin unsloth", *REFUSALS):
            adapted = FastLanguageModel.get_peft_model(model, **self._adapter_arguments(config, new_token_ids))
        trained, total = adapted.get_nb_trainable_parameters()
        share = f"{trained:,} trainable of {total:,} parameters ({100 * trained / total:.1f} %)"
        logger.info("unsloth: LoRA, %s", share)
        return adapted

    def _adapter_arguments(self, config: RunConfig, new_token_ids: list[int]) -> dict[str, Any]:
        arguments = {name: getattr(self, name) for name in ADAPTER}
        alpha = self.lora_alpha
        arguments["lora_alpha"] = int(alpha) if float(alpha).is_integer() else alpha
        if new_token_ids:
            layers = ["embed_tokens", "lm_head"]
            arguments["modules_to_save"] = list(dict.fromkeys([*(self.modules_to_save or []), *layers]))
            logger.info("unsloth: %s are trained in full for %d new tokens", " and ".join(layers), len(new_token_ids))
        if self.loftq_config is not None:
            arguments["init_lora_weights"] = "loftq"
            arguments["loftq_config"] = _loftq(self.loftq_config)
        # Unset options are left to unsloth, whose default lists the layers of the model's type.
        arguments = {name: value for name, value in arguments.items() if value is not None}
        return {
            **arguments,
            "max_seq_length": self.max_seq_length or config.data.max_length,
            "use_gradient_checkpointing": self.use_gradient_checkpointing,
            "random_state": self._seed(config),
            **self.options,
        }


def adapter_arguments() -> set[str]:
    """The arguments of unsloth's get_peft_model: its own, and those of peft's LoraConfig, which it passes on."""
    from peft import LoraConfig
    from unsloth import FastLanguageModel

    names = inspect.signature(FastLanguageModel.get_peft_model).parameters
    own = {name for name, parameter in names.items() if parameter.kind is not parameter.VAR_KEYWORD}
    return own | {field.name for field in dataclasses.fields(LoraConfig)}


def _torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def _loftq(values: dict[str, Any]) -> Any:
    from peft import LoftQConfig

    return LoftQConfig(**values)


@contextmanager
def _trainer_kept() -> Iterator[None]:
    """Restores transformers.Trainer, whose loop, step and count of trained tokens unsloth rewrites.

    sftkit's trainer divides by its own count; unsloth's does not know the weights of tokens.
    """
    from transformers import Trainer

    before = dict(vars(Trainer))
    try:
        yield
    finally:
        for name in set(vars(Trainer)) - set(before):
            delattr(Trainer, name)
        for name, value in before.items():
            if vars(Trainer).get(name) is not value:
                setattr(Trainer, name, value)
