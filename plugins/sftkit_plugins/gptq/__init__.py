"""GPTQ: the trained model in few bits, calibrated on the training data; and adapters on a base that is so already."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from sftkit.api import ConfigError, Field, Plugin, Problem, dataclass, hookimpl, quantization_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from sftkit.api import RunConfig

#: Values in `config.json` that are widths of the layers, and what the kernels pack together.
WIDTHS = ("hidden_size", "intermediate_size")
PACKED = 32
SHARDING = ("fsdp", "deepspeed")


@dataclass(frozen=True, kw_only=True)
class GPTQ(Plugin):
    """Writes the trained model in 2, 3, 4 or 8 bits into the folder `gptq`, calibrated on its training data.

    Source: Frantar et al., 2023, GPTQ: Accurate Post-Training Quantization (arXiv 2210.17323), algorithm 1.
    """

    requires: ClassVar[tuple[str, ...]] = ("optimum>=2.3", "gptqmodel>=7.6")
    conflicts: ClassVar[tuple[str, ...]] = ("bitsandbytes",)

    bits: Annotated[Literal[2, 3, 4, 8], Field(description="bits a weight")] = 4
    group_size: Annotated[
        Literal[-1, 16, 32, 64, 128, 256, 512, 1024],
        Field(description="inputs of a layer that share a scale; -1: all of them"),
    ] = 128
    desc_act: Annotated[bool, Field(description="quantize the inputs with the largest activations first")] = False
    sym: Annotated[bool, Field(description="the values lie evenly around 0; false: with a zero point a group")] = True
    damp: Annotated[float, Field(gt=0, lt=1, description="share of the Hessian's mean diagonal added to it")] = 0.01
    rows: Annotated[int, Field(gt=0, description="documents of the training data to calibrate on")] = 128
    max_length: Annotated[int, Field(gt=1, description="tokens of such a document, at most")] = 2048
    export: Annotated[bool, Field(description="quantize the trained model; set false to train on a GPTQ base")] = True
    backend: Annotated[str, Field(description="kernel for a GPTQ base; torch has right gradients everywhere")] = "torch"

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """What cannot be quantized, or is so already, and widths that are no whole number of groups."""
        found = quantization_of(config.model.name)
        method = (found or {}).get("quant_method")
        local = Path(config.model.name).is_dir()
        if self.export and found is not None:
            fix = "set export=false to train an adapter on it" if method == "gptq" else "drop plugin gptq"
            yield Problem(f"the base is quantized already, by {method}", "plugin gptq, option export", fix)
        if not self.export and local and method != "gptq":
            what = "there is nothing to do: the base is not quantized by GPTQ, and nothing is exported"
            yield Problem(what, "plugin gptq, option export", "drop plugin gptq, or set export=true")
        for key in SHARDING:
            if self.export and config.train.get(key):
                what = "the weights are spread over processes, and one process quantizes them"
                yield Problem(what, f"train.{key}", "quantize the saved model afterwards", ("train", key))
        if self.export and found is None:
            yield from self._width_problems(config.model.name)

    def _width_problems(self, name: str) -> Iterator[Problem]:
        group = PACKED if self.group_size == -1 else self.group_size
        for key, width in _widths(name).items():
            if width % PACKED:
                what = f"{key} is {width}, and the kernels take multiples of {PACKED}"
                yield Problem(what, "plugin gptq", "drop plugin gptq: this model cannot be quantized so")
            elif width % group:
                fitting = [size for size in (1024, 512, 256, 128, 64, 32, 16) if width % size == 0 and size < group]
                what = f"{key} is {width}, no whole number of groups of {group}"
                yield Problem(what, "plugin gptq, option group_size", f"set group_size={fitting[0]}")

    @hookimpl
    def model_options(self, config: RunConfig) -> dict[str, Any]:
        """The kernel of a base that GPTQ has quantized."""
        if self.export or config.model.loaded:
            return {}
        from transformers import GPTQConfig

        bits = (quantization_of(config.model.name) or {}).get("bits", self.bits)
        return {"quantization_config": GPTQConfig(bits=bits, backend=self.backend)}

    @hookimpl(wrapper=True)
    def adapt_model(self, model: PreTrainedModel) -> Iterator[None]:
        """Sees to it that the base is what the options say.

        Raises:
            ConfigError: if it is quantized and to be exported, or is not and nothing is to be exported.
        """
        method = getattr(model, "quantization_method", None)
        if not self.export and method != "gptq":
            what = "there is nothing to do: the base is not quantized by GPTQ, and nothing is exported"
            raise ConfigError(Problem(what, "plugin gptq, option export", "drop plugin gptq, or set export=true"))
        if self.export and method is not None:
            what = f"the base is quantized already, by {getattr(method, 'value', method)}"
            raise ConfigError(Problem(what, "plugin gptq, option export", "set export=false, or drop plugin gptq"))
        return (yield)

    @hookimpl
    def trainer_callbacks(self, config: RunConfig) -> list[TrainerCallback]:
        """One that tries the model's layers and draws the rows to calibrate on, when training begins."""
        if not self.export:
            return []
        from sftkit_plugins.gptq.calibration import Calibration

        return [Calibration(self.settings(), self.rows, self.max_length, config.model.trust_remote_code)]

    @hookimpl
    def export_model(self, model: Any, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
        """Writes the quantized model and the tokenizer into the folder ``gptq``; the model stays as it is.

        Raises:
            RunError: if it fails; the model in full is saved by then.
        """
        if self.export and os.environ.get("RANK", "0") == "0":
            from sftkit_plugins.gptq.export import export

            export(model, tokenizer, directory, self.settings())

    def settings(self) -> dict[str, Any]:
        """The arguments of optimum's quantizer."""
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "desc_act": self.desc_act,
            "sym": self.sym,
            "damp_percent": self.damp,
            # Ordering groups by activation (not in the paper) goes with neither of these.
            "act_group_aware": not self.desc_act and self.group_size != -1,
        }


def _widths(name: str) -> dict[str, int]:
    """The widths of the layers that a local model's configuration names."""
    try:
        config = json.loads(Path(name, "config.json").read_text("utf-8"))
        return {key: config[key] for key in WIDTHS if isinstance(config.get(key), int)}
    except (OSError, ValueError, AttributeError):
        return {}  # the loader tells what is wrong with it, and the layers are tried before training
