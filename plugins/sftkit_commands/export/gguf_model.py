"""A model that transformers has saved, as a GGUF file: its architecture and its tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.api import ConfigError, Problem
from sftkit_commands.export.gguf_tokens import Vocabulary, add_vocabulary

if TYPE_CHECKING:
    import numpy as np

WHERE = "--gguf"
#: Architectures by ``model_type``: their name in GGUF, and whether the rows of queries and keys are reordered.
ARCHITECTURES = {"llama": ("llama", True), "qwen2": ("qwen2", False), "qwen3": ("qwen3", False)}
SCALINGS = ("default", "linear", "yarn", "llama3")
TYPES = ("f32", "f16", "bf16", "q8_0")
BLOCK = 32  # values of q8_0 that share a scale


@dataclass(frozen=True)
class Architecture:
    """What the GGUF of a model needs to know of its ``config.json``.

    Attributes:
        config: the configuration.
        name: of the architecture in GGUF.
        reordered: whether the file has the two halves of each head of queries and keys interleaved, as Meta's own
            weights do; transformers has them one after the other.
    """

    config: Any
    name: str
    reordered: bool

    @property
    def head_width(self) -> int:
        """Width of an attention head."""
        return int(getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads)


def architecture_of(config: Any) -> Architecture:
    """The architecture of a model in GGUF.

    Args:
        config: the model's configuration.

    Raises:
        ConfigError: if it is not known here, or the model uses what llama.cpp does not compute for it.
    """
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        what = f"models of the type {config.model_type} are not written as GGUF"
        fix = f"the types are: {', '.join(ARCHITECTURES)}; for others use convert_hf_to_gguf.py of llama.cpp"
        raise ConfigError(Problem(what, WHERE, fix))
    made, scaling = Architecture(config, *found), _rope(config)["rope_type"]
    narrow = made.head_width * config.num_attention_heads != config.hidden_size and config.model_type == "qwen2"
    for wrong, what in (
        (config.hidden_act != "silu", f"the activation is {config.hidden_act}, and llama.cpp uses silu"),
        (getattr(config, "use_sliding_window", False), "the model uses a sliding window, which llama.cpp ignores"),
        (scaling not in SCALINGS, f"the positions are scaled by {scaling}, which is not written"),
        ((scaling == "llama3") > (made.name == "llama"), "llama.cpp scales positions by llama3 only for Llama"),
        (_unread(config), f"YaRN has {', '.join(_unread(config))}, which llama.cpp does not read from the file"),
        (narrow, "the heads together are not as wide as the model, which llama.cpp requires for qwen2"),
    ):
        if wrong:
            raise ConfigError(Problem(what, WHERE, "export it without --gguf"))
    return made


def write_gguf(source: Path, target: Path, kind: str, vocabulary: Vocabulary, name: str) -> int:
    """Write a GGUF file.

    Args:
        source: the directory of the model, with ``config.json`` and ``*.safetensors``.
        target: the file.
        kind: type of the matrices, one of `TYPES`; vectors are always float32.
        vocabulary: the tokenizer as GGUF has it.
        name: of the model.

    Returns:
        The number of matrices that are f16 because their rows cannot be divided into blocks of q8_0.
    """
    import gguf
    import numpy as np
    from transformers import AutoConfig

    architecture = architecture_of(AutoConfig.from_pretrained(source))
    writer = gguf.GGUFWriter(target, architecture.name, use_temp_file=False)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(getattr(gguf.LlamaFileType, "ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"))
    if kind == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_sizes(writer, architecture)
    add_vocabulary(writer, vocabulary)
    found = list(tensors(source, architecture))
    for tensor in found:  # what is where, before any of them is read
        stored = stored_type(tensor.shape, kind)
        shape = gguf.quants.quant_shape_to_byte_shape(tensor.shape, stored)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), math.prod(shape), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in found:
        values = gguf.quants.quantize(tensor.read(), stored_type(tensor.shape, kind))
        writer.write_tensor_data(values.view(np.uint8))
    writer.close()
    return sum(kind == "q8_0" and stored_type(tensor.shape, kind).name == "F16" for tensor in found)


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor of a GGUF file.

    Attributes:
        name: in the file.
        shape: of its values.
        read: returns the values: float32, in the order of the file.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray[Any, Any]]


def tensors(source: Path, architecture: Architecture) -> Iterator[GGUFTensor]:
    """The tensors of a saved model under their names in GGUF, not read yet.

    Raises:
        ConfigError: for a tensor that the architecture does not have.
    """
    import gguf

    config = architecture.config
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    if (factors := rope_factors(architecture)) is not None:
        yield GGUFTensor("rope_freqs.weight", factors.shape, lambda: factors)
    tied = config.tie_word_embeddings
    for key, shape, read in stored_tensors(source):
        if tied and key == "lm_head.weight":
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            what = f"the model has a tensor {key}, which {architecture.name} of llama.cpp does not have"
            raise ConfigError(Problem(what, WHERE, "export it without --gguf"))
        yield GGUFTensor(name, shape, partial(_reordered, read, key, architecture))


def stored_tensors(source: Path) -> Iterator[tuple[str, tuple[int, ...], Callable[[], np.ndarray[Any, Any]]]]:
    """The tensors in the safetensors of a directory: name, shape, and a function that reads it as float32."""
    from safetensors import safe_open

    index = source / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for file in files:
        with safe_open(source / file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (it is no mapping)
                yield key, tuple(opened.get_slice(key).get_shape()), partial(_read, source / file, key)


def _read(file: Path, key: str) -> np.ndarray[Any, Any]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        values: np.ndarray[Any, Any] = opened.get_tensor(key).float().numpy()
        return values


def _reordered(read: Callable[[], np.ndarray[Any, Any]], key: str, architecture: Architecture) -> Any:
    return reorder(read(), key, architecture)


def reorder(values: np.ndarray[Any, Any], key: str, architecture: Architecture) -> np.ndarray[Any, Any]:
    """The weights or bias of queries or keys in the order of the file, where that differs; others unchanged."""
    part = key.rsplit(".", 2)[-2]
    if not architecture.reordered or part not in ("q_proj", "k_proj"):
        return values
    config = architecture.config
    heads = config.num_attention_heads if part == "q_proj" else config.num_key_value_heads
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def stored_type(shape: tuple[int, ...], kind: str) -> Any:
    """The type of a tensor in the file: float32 for vectors, f16 where rows cannot be divided into blocks of q8_0."""
    import gguf

    if len(shape) < 2:
        kind = "f32"
    elif kind == "q8_0" and shape[-1] % BLOCK:
        kind = "f16"
    return gguf.GGMLQuantizationType[kind.upper()]


def _add_sizes(writer: Any, architecture: Architecture) -> None:
    config, width, rope = architecture.config, architecture.head_width, _rope(architecture.config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] in ("linear", "yarn"):
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
        writer.add_rope_scaling_attn_factors(_attention_factor(config))


def _rope(config: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10_000.0, **(config.rope_parameters or {})}


def _attention_factor(config: Any) -> float:
    """By what a model's cosines and sines differ from those of YaRN, which llama.cpp multiplies itself."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    _, own = ROPE_INIT_FUNCTIONS["yarn"](config)
    return float(own / (0.1 * math.log(_rope(config)["factor"]) + 1))


def _unread(config: Any) -> list[str]:
    """The parameters of YaRN that llama.cpp does not read from the file, where they are not its defaults."""
    rope, defaults = _rope(config), {"beta_fast": 32, "beta_slow": 1, "truncate": True}
    yarn = rope["rope_type"] == "yarn"
    return [f"{name} {rope[name]}" for name, value in defaults.items() if yarn and rope.get(name) not in (None, value)]


def rope_factors(architecture: Architecture) -> np.ndarray[Any, Any] | None:
    """By what the frequencies of Llama 3's positions are divided; None for other scalings.

    Source: Llama 3.1's own code; short wavelengths are kept, long ones scaled, and those between interpolated.
    """
    import numpy as np

    rope = _rope(architecture.config)
    if rope["rope_type"] != "llama3":
        return None
    width, old = architecture.head_width, rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    found = []
    for at in range(0, width, 2):
        turns = old / (2 * math.pi * rope["rope_theta"] ** (at / width))  # within the original context
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, dtype=np.float32)
