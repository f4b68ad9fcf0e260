"""A GGUF file read back: every tensor and the tokenizer, compared with what was to be written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.api import Problem, RunError
from sftkit_commands.export.gguf_model import Architecture, stored_type, tensors
from sftkit_commands.export.gguf_tokens import Vocabulary

if TYPE_CHECKING:
    import numpy as np

#: The largest difference by type of the file: f16 and bf16 round to 11 and 8 bits, q8_0 to 127 steps of a block's
#: largest value, whose own scale is an f16.
RELATIVE = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8}
SMALLEST = 2.0**-24  # of f16
STEP = 1 / 127 * (0.5 + 127 * 2.0**-11)


def check_gguf(path: Path, source: Path, architecture: Architecture, kind: str, vocabulary: Vocabulary) -> int:
    """Compare a GGUF file with the model and the tokenizer that it was made of.

    Args:
        path: the file.
        source: the directory of the model.
        architecture: of the model.
        kind: the type of the file's matrices.
        vocabulary: the tokenizer that was to be written.

    Returns:
        The number of tensors that were compared.

    Raises:
        RunError: if anything differs.
    """
    import gguf

    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}
    wrong = [name for name, value in _expected(vocabulary).items() if not _equal(fields.get(name), value)]
    wrong += sorted(name for name in fields if name not in _expected(vocabulary))
    read = {tensor.name: tensor for tensor in reader.tensors}
    expected = {tensor.name: tensor for tensor in tensors(source, architecture)}
    if read.keys() != expected.keys():
        wrong += sorted(read.keys() ^ expected.keys())
    for name in read.keys() & expected.keys():
        tensor, there = expected[name], read[name]
        if there.tensor_type != stored_type(tensor.shape, kind):
            wrong.append(f"{name}: {there.tensor_type.name}")
            continue
        values = gguf.quants.dequantize(there.data, there.tensor_type)
        if values.shape != tensor.shape or not _close(values, tensor.read(), there.tensor_type.name):
            wrong.append(name)
    if wrong:
        what = f"the GGUF file differs from the model when it is read back: {', '.join(sorted(wrong)[:8])}"
        raise RunError(Problem(what, path.name, "this is a bug of sftkit or of the package gguf; please report it"))
    return len(read)


def _close(read: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any], stored: str) -> bool:
    import numpy as np

    if stored == "Q8_0":
        blocks = np.abs(wanted).reshape(*wanted.shape[:-1], -1, 32).max(axis=-1, keepdims=True)
        allowed = np.broadcast_to(blocks, (*blocks.shape[:-1], 32)).reshape(wanted.shape) * STEP
    else:
        allowed = np.abs(wanted) * RELATIVE[stored]
    return bool((np.abs(read - wanted) <= allowed + (SMALLEST if stored in ("F16", "Q8_0") else 0)).all())


def _expected(vocabulary: Vocabulary) -> dict[str, Any]:
    found: dict[str, Any] = {
        "model": vocabulary.model,
        "pre": vocabulary.pre,
        "tokens": list(vocabulary.tokens),
        "token_type": list(vocabulary.types),
    }
    if vocabulary.merges:
        found["merges"] = list(vocabulary.merges)
    if vocabulary.scores:
        found |= {"scores": list(vocabulary.scores), "add_space_prefix": vocabulary.space_prefix}
    names = {"unk": "unknown", "pad": "padding"}
    found |= {f"{names.get(role, role)}_token_id": token for role, token in vocabulary.ids.items()}
    found |= {f"add_{role}_token": added for role, added in vocabulary.adds.items()}
    made = {f"tokenizer.ggml.{name}": value for name, value in found.items()}
    return made | ({"tokenizer.chat_template": vocabulary.template} if vocabulary.template else {})


def _equal(read: Any, wanted: Any) -> bool:
    return type(read) is type(wanted) and bool(read == wanted)
