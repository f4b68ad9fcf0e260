"""GPTQ: quantizes the trained model, calibrated on its training data; also trains adapters on a GPTQ base."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from sftkit.api import (
    ConfigError,
    Field,
    Plugin,
    Problem,
    dataclass,
    hookimpl,
    is_main_process,
    quantization_of,
    quantization_settings,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from sftkit.api import PluginSet, RunConfig

#: Keys of `config.json` that are widths of layers, and the number of values that the kernels pack together.
WIDTHS = ("hidden_size", "intermediate_size")
PACKED = 32
NOTHING_TO_DO = "nothing to do: the base is not quantized by GPTQ, and export is off"


@dataclass(frozen=True, kw_only=True)
class GPTQ(Plugin):
    """Quantizes the trained model to 2, 3, 4 or 8 bits in the folder `gptq`, calibrated on its training data.

    Source: Frantar et al., 2023, GPTQ: Accurate Post-Training Quantization (arXiv 2210.17323), algorithm 1.
    """

    requires: ClassVar[tuple[str, ...]] = ("optimum>=2.3", "gptqmodel>=7.6")
    conflicts: ClassVar[tuple[str, ...]] = ("bitsandbytes",)
    writes: ClassVar[tuple[str, ...]] = ("gptq",)

    bits: Annotated[Literal[2, 3, 4, 8], Field(description="bits per weight")] = 4
    group_size: Annotated[
        Literal[-1, 16, 32, 64, 128, 256, 512, 1024],
        Field(description="number of inputs of a layer that share a scale; -1: all of them"),
    ] = 128
    desc_act: Annotated[bool, Field(description="quantize the inputs with the largest activations first")] = False
    sym: Annotated[bool, Field(description="values symmetric around 0; false: a zero point for each group")] = True
    damp: Annotated[
        float, Field(gt=0, lt=1, description="share of the mean diagonal of the Hessian that is added to it")
    ] = 0.01
    rows: Annotated[int, Field(gt=0, description="number of training documents to calibrate on")] = 128
    max_length: Annotated[int, Field(gt=1, description="maximum number of tokens of such a document")] = 2048
    export: Annotated[bool, Field(description="quantize the trained model; false to train on a GPTQ base")] = True
    backend: Annotated[
        str,
        Field(description="kernel for a GPTQ base, as gptqmodel names it; torch gives correct gradients everywhere"),
    ] = "torch"

    @hookimpl
    def check_run(self, config: RunConfig, plugins: PluginSet) -> Iterator[Problem]:
        """What cannot be quantized or already is, and widths that are not divisible into groups."""
        found = quantization_of(config.model.name)
        method = (found or {}).get("quant_method")
        local = Path(config.model.name).is_dir()
        if self.export and found is not None:
            fix = "set export=false to train an adapter on it" if method == "gptq" else "drop plugin gptq"
            yield Problem(f"the base is already quantized by {method}", "plugin gptq, option export", fix)
        if not self.export and local and method != "gptq":
            yield Problem(NOTHING_TO_DO, "plugin gptq, option export", "drop plugin gptq, or set export=true")
        for name in plugins.fillers("make_engine") if self.export else ():
            what = "the weights are sharded, but a single process quantizes them"
            yield Problem(what, f"plugin {name}", "drop plugin gptq, and quantize the saved model afterwards")
        if self.export and found is None:
            yield from self._width_problems(config.model.name)

    def _width_problems(self, name: str) -> Iterator[Problem]:
        group = PACKED if self.group_size == -1 else self.group_size
        for key, width in _widths(name).items():
            if width % PACKED:
                what = f"{key} is {width}, but the kernels need multiples of {PACKED}"
                yield Problem(what, "plugin gptq", "drop plugin gptq; this model cannot be quantized by it")
            elif width % group:
                fitting = [size for size in (1024, 512, 256, 128, 64, 32, 16) if width % size == 0 and size < group]
                what = f"{key} is {width}, which is not divisible by {group}"
                yield Problem(what, "plugin gptq, option group_size", f"set group_size={fitting[0]}")

    @hookimpl
    def model_options(self, config: RunConfig) -> dict[str, Any]:
        """The kernel for a base that GPTQ has quantized."""
        if self.export or config.model.loaded:
            return {}
        from transformers import GPTQConfig

        bits = (quantization_of(config.model.name) or {}).get("bits", self.bits)
        return {"quantization_config": GPTQConfig(bits=bits, backend=self.backend)}

    @hookimpl(wrapper=True)
    def adapt_model(self, model: PreTrainedModel) -> Iterator[None]:
        """Checks that the base is quantized by GPTQ if nothing is exported, and not quantized otherwise.

        Raises:
            ConfigError: if it is not so.
        """
        where = "plugin gptq, option export"
        # from the configuration, which a model without weights has too
        method = quantization_settings(model).get("quant_method")
        if not self.export and method != "gptq":
            raise ConfigError(Problem(NOTHING_TO_DO, where, "drop plugin gptq, or set export=true"))
        if self.export and method is not None:
            what = f"the base is already quantized by {getattr(method, 'value', method)}"
            raise ConfigError(Problem(what, where, "set export=false, or drop plugin gptq"))
        return (yield)

    @hookimpl
    def trainer_callbacks(self, config: RunConfig) -> list[TrainerCallback]:
        """One that checks the layers and draws the calibration documents when training begins."""
        if not self.export:
            return []
        from sftkit_plugins.gptq.calibration import Calibration

        return [Calibration(self.settings(), self.rows, self.max_length, config.model.trust_remote_code)]

    @hookimpl
    def export_model(self, model: Any, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
        """Writes the quantized model and the tokenizer into the folder ``gptq``, without changing the model.

        Raises:
            RunError: if it fails; the trained model is already saved by then.
        """
        if self.export and is_main_process():
            from sftkit_plugins.gptq.export import export

            export(model, tokenizer, directory, self.settings())

    @hookimpl
    def quantize_model(
        self, source: Path, target: Path, rows: Sequence[Sequence[int]], probes: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Quantizes a saved model, calibrated on the first of the rows; in a separate process."""
        from sftkit_plugins.gptq.saved import documents_for, quantize_saved

        return quantize_saved(source, target, documents_for(rows, self.rows, self.max_length), probes, self.settings())

    def settings(self) -> dict[str, Any]:
        """The arguments of optimum's quantizer."""
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "desc_act": self.desc_act,
            "sym": self.sym,
            "damp_percent": self.damp,
            # Ordering groups by activation (not in the paper) works with neither of these.
            "act_group_aware": not self.desc_act and self.group_size != -1,
        }


def _widths(name: str) -> dict[str, int]:
    """The widths of layers in the configuration of a local model."""
    try:
        config = json.loads(Path(name, "config.json").read_text("utf-8"))
        return {key: config[key] for key in WIDTHS if isinstance(config.get(key), int)}
    except (OSError, ValueError, AttributeError):
        return {}  # the loader reports what is wrong with it, and the layers are checked before training
