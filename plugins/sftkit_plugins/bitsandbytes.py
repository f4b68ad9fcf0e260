"""Quantized base models of 4 and 8 bits for training adapters, with bitsandbytes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from sftkit.api import (
    CHECKPOINTING_KEYS,
    NEEDS_ADAPTER,
    ConfigError,
    Field,
    Plugin,
    Problem,
    base_model,
    dataclass,
    has_gpu,
    hookimpl,
    is_adapter,
    quantization_of,
    quantization_settings,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sftkit.api import PluginSet, RunConfig

Float = Literal["float32", "bfloat16", "float16"]
#: How weights are quantized, by option: the bits it applies to, its name in `BitsAndBytesConfig`, and its default.
SETTINGS: dict[str, tuple[int, str, Any]] = {
    "quant_type": (4, "bnb_4bit_quant_type", "nf4"),
    "double_quant": (4, "bnb_4bit_use_double_quant", True),
    "compute_dtype": (4, "bnb_4bit_compute_dtype", None),
    "quant_storage": (4, "bnb_4bit_quant_storage", "uint8"),
    "threshold": (8, "llm_int8_threshold", 6.0),
}


@dataclass(frozen=True, kw_only=True)
class BitsAndBytes(Plugin):
    """Quantizes the base model to 4 or 8 bits while an adapter is trained on it (QLoRA).

    Sources: Dettmers et al., 2023, QLoRA (arXiv 2305.14314), section 3, for 4 bits; Dettmers et al., 2022, LLM.int8()
    (arXiv 2208.07339) for 8.
    """

    requires: ClassVar[tuple[str, ...]] = ("bitsandbytes>=0.46.1", "peft>=0.18")

    bits: Annotated[
        Literal[4, 8] | None, Field(description="bits per weight, 4 by default; a quantized model keeps its own")
    ] = None
    quant_type: Annotated[
        Literal["nf4", "fp4"] | None, Field(description="4 bits: data type of the weights, nf4 by default")
    ] = None
    double_quant: Annotated[
        bool | None, Field(description="4 bits: quantize the scales of the blocks too; true by default")
    ] = None
    compute_dtype: Annotated[
        Float | None,
        Field(
            description="4 bits: type of matrix products; by default bfloat16 with train.bf16, float16 with "
            "train.fp16, else float32"
        ),
    ] = None
    quant_storage: Annotated[
        Literal["uint8", "float32", "bfloat16", "float16"] | None,
        Field(description="4 bits: type that stores the packed weights; uint8 by default"),
    ] = None
    threshold: Annotated[
        float | None, Field(ge=0, description="8 bits: larger activations are multiplied unquantized; 6 by default")
    ] = None
    skip_modules: Annotated[
        list[str] | None, Field(description="names of layers that stay unquantized, besides the output head")
    ] = None
    use_gradient_checkpointing: Annotated[
        bool, Field(description="recompute activations in the backward pass, as train.activation_checkpointing does")
    ] = False
    gradient_checkpointing_kwargs: Annotated[
        dict[str, Any], Field(description="arguments of `torch.utils.checkpoint.checkpoint`")
    ] = dataclasses.field(default_factory=lambda: {"use_reentrant": False})

    @hookimpl
    def check_run(self, config: RunConfig, plugins: PluginSet) -> Iterator[Problem]:
        """A base without an adapter, options that do not fit the bits or the checkpoint, and what a CPU cannot do."""
        yield from self._option_problems(config)
        name = config.model.name
        if not (config.model.loaded or is_adapter(name) or plugins.fillers("adapt_model")):
            yield Problem(NEEDS_ADAPTER, "plugin bitsandbytes", "select a plugin that adds an adapter, as with -p peft")
        if config.model.init == "random":
            fix = "name a model with weights, and set model.init=pretrained"
            yield Problem("only weights that are loaded can be quantized", "model.init", fix, ("model", "init"))
        switches = [f"train.{key}" for key in CHECKPOINTING_KEYS if config.train.get(key)]
        switches += ["plugin activations"] if "activations" in config.plugins else []
        if self.use_gradient_checkpointing and switches:
            fix = "drop use_gradient_checkpointing of plugin bitsandbytes"
            yield Problem("activation checkpointing is switched on twice", switches[0], fix)
        optimizer = str(config.train.get("optim", ""))
        if optimizer.startswith("paged_") and (config.train.get("use_cpu") or not has_gpu()):
            what = f"{optimizer} moves its state between a GPU and the host, but the run uses no GPU"
            fix = f"set train.optim={'adamw_bnb_8bit' if '8bit' in optimizer else 'adamw_torch'}"
            yield Problem(what, "train.optim", fix, ("train", "optim"))

    def _option_problems(self, config: RunConfig) -> Iterator[Problem]:
        found = None if config.model.loaded else quantization_of(config.model.name)
        bits = bits_of(found or {}) or self.bits or 4
        if found is not None and found.get("quant_method") != "bitsandbytes":
            what = f"the checkpoint is already quantized by {found.get('quant_method')}"
            yield Problem(what, "model.name", "drop plugin bitsandbytes, or name a model that is not quantized")
            return
        if found is not None and self.bits not in (None, bits):
            what, fix = f"the checkpoint has {bits} bits", "drop the option, or name a model that is not quantized"
            yield Problem(what, "plugin bitsandbytes, option bits", fix)
        for name, (width, _, _) in SETTINGS.items():
            where, key = f"plugin bitsandbytes, option {name}", ("plugins", "bitsandbytes", name)
            if getattr(self, name) is None:
                continue
            if found is not None:
                yield Problem("the checkpoint is already quantized", where, "remove it", key)
            elif width != bits and not config.model.loaded:
                yield Problem(f"only for {width} bits", where, f"remove it, or set bits={width}", key)

    @hookimpl
    def model_options(self, config: RunConfig) -> dict[str, Any]:
        """How to quantize the weights as they are read, and the device of each process."""
        if config.model.loaded:
            return {}
        place = {} if "device_map" in config.model.options else {"device_map": {"": _device(config)}}
        if quantization_of(config.model.name) is not None:
            return place
        from transformers import BitsAndBytesConfig

        return place | {"quantization_config": BitsAndBytesConfig(**self._settings(config))}

    def _settings(self, config: RunConfig) -> dict[str, Any]:
        bits = self.bits or 4
        mixed = next((kind for kind in ("bf16", "fp16") if config.train.get(kind)), "")
        compute = {"bf16": "bfloat16", "fp16": "float16"}.get(mixed, "float32")
        settings = {f"load_in_{bits}bit": True, "bnb_4bit_compute_dtype": compute}
        for name, (width, field, default) in SETTINGS.items():
            value = default if getattr(self, name) is None else getattr(self, name)
            if width == bits and value is not None:
                settings[field] = value
        if self.skip_modules is not None:
            settings["llm_int8_skip_modules"] = ["lm_head", *self.skip_modules]
        return settings

    @hookimpl(wrapper=True)
    def adapt_model(self, model: PreTrainedModel) -> Iterator[None]:
        """Checks how the base is quantized, and checkpoints its activations. Changes the model.

        Raises:
            ConfigError: if it is not quantized as the options say.
        """
        self._check_model(model)
        if self.use_gradient_checkpointing:
            base = base_model(model)
            base.enable_input_require_grads()  # reentrant checkpoints need it
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(self.gradient_checkpointing_kwargs))
        return (yield)

    def _check_model(self, model: PreTrainedModel) -> None:
        settings = quantization_settings(model)
        bits = bits_of(settings)
        if bits is None:
            what = "the model is not quantized by bitsandbytes"
            fix = "pass its name instead, or load it with a BitsAndBytesConfig"
            raise ConfigError(Problem(what, "model", fix))
        wanted = {"bits": self.bits} | {name: getattr(self, name) for name in SETTINGS}
        actual = {"bits": bits} | {name: settings.get(field) for name, (_, field, _) in SETTINGS.items()}
        problems = [
            Problem(f"the model has {actual[name]!r}", f"plugin bitsandbytes, option {name}", "remove the option")
            for name, value in wanted.items()
            if value is not None and value != actual[name]
        ]
        if problems:
            raise ConfigError(problems)


def bits_of(settings: Mapping[str, Any]) -> int | None:
    """The bits per weight in settings of bitsandbytes; None for other settings."""
    return next((bits for bits in (4, 8) if settings.get(f"load_in_{bits}bit")), None)


def _device(config: RunConfig) -> str:
    import torch

    if config.train.get("use_cpu") or not torch.accelerator.is_available():
        return "cpu"
    return f"{torch.accelerator.current_accelerator()}:{os.environ.get('LOCAL_RANK', '0')}"
