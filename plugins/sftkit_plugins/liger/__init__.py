"""Liger kernels: RMSNorm, RoPE, SwiGLU, GeGLU, LayerNorm and the loss as fused Triton kernels."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sftkit.api import ConfigError, Field, Plugin, Problem, dataclass, has_gpu, hookimpl
from sftkit_plugins.liger.catalogue import KERNELS, wanted_kernels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sftkit.api import HeadLoss, RunConfig


def _kernel(layer: str) -> Any:
    return Field(description=f"{layer}; by default as liger does for the model type")


@dataclass(frozen=True, kw_only=True)
class Liger(Plugin):
    """Runs the model with the fused Triton kernels of liger-kernel during training, and removes them afterwards.

    Source: Hsu et al., 2024, Liger Kernel: Efficient Triton Kernels for LLM Training (arXiv 2410.10989).
    """

    requires: ClassVar[tuple[str, ...]] = ("liger-kernel>=0.8.3",)
    replaces: ClassVar[Mapping[str, str]] = {"use_liger_kernel": "", "liger_kernel_config": ""}

    rope: Annotated[bool | None, _kernel("rotary position embedding of queries and keys")] = None
    rms_norm: Annotated[bool | None, _kernel("RMSNorm")] = None
    swiglu: Annotated[bool | None, _kernel("SiLU and product in the MLP (Llama, Qwen, ...), and fused experts")] = None
    geglu: Annotated[bool | None, _kernel("GELU and product in the MLP (Gemma)")] = None
    layer_norm: Annotated[bool | None, _kernel("LayerNorm, for model types that use it")] = None
    relu_squared: Annotated[bool | None, _kernel("squared ReLU (Nemotron)")] = None
    cross_entropy: Annotated[
        bool, Field(description="compute the loss with liger's kernel, from the logits of a chunk of trained tokens")
    ] = False
    fused_linear_cross_entropy: Annotated[
        bool | None,
        Field(
            description="fuse the loss with the output head, on trained tokens only; by default on, unless "
            "cross_entropy is on"
        ),
    ] = None

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Reports a missing GPU, a conflict with transformers' own kernels, and unsupported model types or kernels."""
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if not interpreted and not has_gpu():
            what = "liger needs a GPU for its Triton kernels, but none is visible"
            yield Problem(what, "plugin liger", "run on a GPU, or without liger")
        elif not interpreted and config.train.get("use_cpu"):
            what = "train.use_cpu selects the CPU, but Triton kernels need a GPU"
            yield Problem(what, "train.use_cpu", "remove it, or run without liger", ("train", "use_cpu"))
        if self.cross_entropy and self.fused_linear_cross_entropy:
            what = "cross_entropy and fused_linear_cross_entropy cannot be combined: each computes the whole loss"
            yield Problem(what, "plugin liger, option cross_entropy", "set only one of them")
        if config.model.options.get("use_kernels"):
            what = "use_kernels and the plugin liger would replace the same layers"
            yield Problem(
                what,
                "model.options.use_kernels",
                "remove use_kernels, or run without liger",
                ("model", "options", "use_kernels"),
            )
        file = Path(config.model.name, "config.json")
        if file.is_file():
            yield from self._type_problems(json.loads(file.read_text(encoding="utf-8")))

    def _type_problems(self, values: Mapping[str, Any]) -> list[Problem]:
        model_type = values.get("model_type")
        return wanted_kernels(model_type, self._asked())[1] if model_type else []

    def _asked(self) -> dict[str, bool | None]:
        return {name: getattr(self, name) for name in KERNELS}

    @hookimpl(wrapper=True)
    def load_model(self, config: RunConfig) -> Generator[None, Any, Any]:
        """Refuses an unsupported model type as soon as the configuration is known, before weights are read."""
        from transformers import PreTrainedConfig

        try:
            values, _ = PreTrainedConfig.get_config_dict(config.model.name, revision=config.model.revision)
        except OSError:  # an adapter, or not a model at all: the loader handles both
            values = {}
        if problems := self._type_problems(values):
            raise ConfigError(problems)
        return (yield)

    @hookimpl
    def patch_kernels(self, model: PreTrainedModel) -> None:
        """Refuses a loaded model whose type or kernels liger does not support; training applies the kernels later.

        Raises:
            ConfigError: for an unsupported type or kernel; the message lists those that are supported.
        """
        from sftkit_plugins.liger.patch import liger_function

        if problems := wanted_kernels(model.config.model_type, self._asked())[1]:
            raise ConfigError(problems)
        liger_function(model.config.model_type)

    @hookimpl(wrapper=True)
    def make_loss(self, model: Any) -> Generator[None, HeadLoss | None, HeadLoss | None]:
        """Liger's cross-entropy, unless another plugin provides a loss.

        Raises:
            ConfigError: if another plugin provides a loss but liger's is requested, or if the fused loss is requested
                but the output head is not a plain linear layer.
        """
        other = yield
        asked = [name for name in ("cross_entropy", "fused_linear_cross_entropy") if getattr(self, name)]
        if other is not None:
            if asked:
                what = f"another plugin already provides the loss of this run, {type(other).__name__}"
                raise ConfigError(
                    Problem(what, f"plugin liger, option {asked[0]}", "remove the option, or drop the other plugin")
                )
            return other
        return self._loss(model)

    def _loss(self, model: Any) -> HeadLoss | None:
        from torch import nn

        from sftkit_plugins.liger.loss import FUSED, CrossEntropy, FusedLinearCrossEntropy

        if self.cross_entropy:
            return CrossEntropy()
        if self.fused_linear_cross_entropy is False:
            return None
        head = type(model.get_output_embeddings())
        if self.fused_linear_cross_entropy and head is not nn.Linear:
            what = f"the fused loss needs a plain linear output head, but this is {head.__module__}.{head.__name__}"
            raise ConfigError(Problem(what, FUSED, "set cross_entropy: true instead"))
        return FusedLinearCrossEntropy(required=self.fused_linear_cross_entropy is True)

    @hookimpl
    def training_context(self, model: Any) -> AbstractContextManager[None]:
        """Applies the kernels inside the context, and restores the model and transformers on exit."""
        return self._patched(model)

    @contextmanager
    def _patched(self, model: Any) -> Iterator[None]:
        from sftkit_plugins.liger.patch import patched

        model_type = model.config.model_type
        asked = self._asked()
        kernels, problems = wanted_kernels(model_type, asked)
        if problems:
            raise ConfigError(problems)
        with patched(model, kernels, required=[name for name in kernels if asked[name]]) as used:
            logging.getLogger("sftkit").info("liger: %s in %s", ", ".join(used) or "no kernel", model_type)
            yield
