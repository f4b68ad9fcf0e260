"""The size of a base model that is loaded quantized, counted on its full-size weights.

No method of quantization is known here. A checkpoint that is quantized already lists its tensors; for any other,
transformers quantizes sample layers, whose tensors are counted.
"""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers import AutoHfQuantizer
from transformers.utils import logging

#: Weights of a sample layer: so many that the constants that a method keeps for each layer do not matter.
SAMPLE = 1 << 20
LENGTH = 8  # bytes of the length of its header, with which a safetensors file starts
FULL_TYPES = ("F64", "F32", "F16", "BF16")


class Quantized(NamedTuple):
    """The weights of a model that are quantized once it is loaded, in full size, and their bytes when quantized."""

    weights: list[Tensor]
    size: int

    def sizes(self, model: Any) -> tuple[int, int]:
        """Bytes of all weights of the model, adapters too, and of the largest quantized one restored for a product."""
        known = {id(weight) for weight in self.weights}
        tensors = {id(value): value for value in (*model.parameters(), *model.buffers())}
        rest = sum(value.nbytes for key, value in tensors.items() if key not in known)
        return rest + self.size, max((weight.nbytes for weight in self.weights), default=0)


def stored_quantized(model: Any, directory: Path) -> Quantized:
    """The weights of a model (in full size, without adapters) that are quantized in its checkpoint.

    Raises:
        ValueError: if the checkpoint has no tensor of one of the layers.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found: dict[str, dict[str, tuple[str, int]]] = defaultdict(dict)
    for name, dtype, size in _stored_tensors(directory):
        layer = name
        while layer and layer not in layers:
            layer = layer.rpartition(".")[0]
        found[layer][name.removeprefix(f"{layer}.")] = (dtype, size)
    weights, total = [], 0
    for name, module in layers.items():
        tensors = {key: value for key, value in found[name].items() if key != "bias"}
        if not tensors and module is not model.get_output_embeddings():  # those may be tied to the input embeddings
            raise ValueError(f"{directory} has no tensor of the layer {name}")
        if tensors and (tensors.keys() != {"weight"} or tensors["weight"][0] not in FULL_TYPES):
            weights.append(module.weight)
            total += sum(size for _, size in tensors.values())
    return Quantized(weights, total)


def _stored_tensors(directory: Path) -> Iterator[tuple[str, str, int]]:
    """Name, type and bytes of each tensor, from the headers of the files."""
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(LENGTH), "little")))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            yield name, entry["dtype"], end - start


def loaded_quantized(model: Any, settings: Any) -> Quantized:
    """The weights of a model (on the meta device, without adapters) that transformers quantizes while it loads it.

    Args:
        settings: a ``quantization_config`` of transformers.

    Raises:
        Exception: whatever the method raises if its package is missing, or if it does not support this machine.
    """
    quantizer = AutoHfQuantizer.from_config(copy.deepcopy(settings), pre_quantized=False)
    converted = copy.deepcopy(model)
    quantizer.preprocess_model(model=converted, dtype=model.dtype, device_map=None)
    names = [name for name, _ in converted.named_parameters() if quantizer.param_needs_quantization(converted, name)]
    weights = [model.get_parameter(name) for name in names]
    each = _bytes_per_weight(sorted({weight.shape[-1] for weight in weights}), settings, model.dtype)
    return Quantized(weights, round(sum(weight.numel() * each[weight.shape[-1]] for weight in weights)))


class _Sample(PreTrainedModel):  # type: ignore[misc]
    """Linear layers to quantize."""

    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        for inputs in config.widths:
            self.add_module(f"sample_{inputs}", nn.Linear(inputs, max(SAMPLE // inputs // 64, 1) * 64, bias=False))
        self.last = nn.Linear(1, 1, bias=False)  # quantizers leave the last layer as it is, for it is usually the head
        self.post_init()


def _bytes_per_weight(widths: list[int], settings: Any, dtype: torch.dtype) -> dict[int, float]:
    """Bytes of a weight, with its share of the scales, by the number of inputs of its layer."""
    config = PretrainedConfig(widths=widths)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with torch.device("cpu"):
            state = {name: torch.ones_like(value) for name, value in _Sample(config).state_dict().items()}
            options = {"quantization_config": copy.deepcopy(settings), "dtype": dtype}
            sample = _Sample.from_pretrained(None, config=config, state_dict=state, **options)
    finally:
        if shown:
            logging.enable_progress_bar()
    each = {}
    for inputs in widths:
        tensors = sample.get_submodule(f"sample_{inputs}").state_dict().values()
        size = sum(value.nbytes for value in tensors if isinstance(value, Tensor))
        each[inputs] = size / state[f"sample_{inputs}.weight"].numel()
        if each[inputs] >= dtype.itemsize:
            raise ValueError("a sample layer was not quantized")
    return each
