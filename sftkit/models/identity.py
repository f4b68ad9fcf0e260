"""Which weights a run starts from, as far as it can be known without reading them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.models.adapters import base_of, is_adapter

if TYPE_CHECKING:
    from sftkit.config import RunConfig

HEADER = 1 << 20  # bytes at the start of a file that is not safetensors
LONGEST = 100_000_000  # bytes of a header of safetensors, as its own reader limits them
WHOLE = ("config.json", "adapter_config.json")  # small files, compared as a whole
WEIGHTS = (".safetensors", ".gguf")


def weights_identity(config: RunConfig, loaded: Any = None, digest: bool = False) -> dict[str, Any]:
    """Identifies the base weights.

    Files are identified by their size and their header, which holds the names, types and shapes of the weights; a
    model of the hub by its commit; a loaded model by the names, types and shapes of its weights.

    Args:
        config: the run as resolved.
        loaded: the loaded model, if it is among the run's inputs.
        digest: whether the contents of the files, or of the loaded weights, are read too.

    Returns:
        By file, its ``size``, ``header`` and perhaps ``digest``; or a ``commit`` by the name of a model on the hub.
    """
    if loaded is not None:
        return {type(loaded).__name__: _loaded(loaded, digest)}
    name, revision = config.model.name, config.model.revision
    found: dict[str, Any] = {}
    if is_adapter(name):
        found |= _directory(Path(name), digest, "adapter/")
        name, revision = base_of(name, revision)
    root = Path(name, str(config.model.options.get("subfolder", "")))
    if root.is_dir():
        return found | _directory(root, digest)
    return found | {name: {"commit": _commit(name, revision, config)}}


def _directory(root: Path, digest: bool, prefix: str = "") -> dict[str, Any]:
    return {f"{prefix}{path.name}": _file(path, digest) for path in _files(root)}


def _files(root: Path) -> Iterator[Path]:
    for path in sorted(root.iterdir()):
        if path.is_file() and (path.name in WHOLE or path.suffix in WEIGHTS):
            yield path


def _file(path: Path, digest: bool) -> dict[str, Any]:
    import xxhash

    size = path.stat().st_size
    with path.open("rb") as file:
        length = HEADER
        if path.suffix == ".safetensors":
            length = int.from_bytes(file.read(8), "little")
        found = {"size": size, "header": xxhash.xxh3_128_hexdigest(file.read(min(length, size, LONGEST)))}
    return found | ({"digest": _digest(path)} if digest else {})


def _digest(path: Path) -> str:
    import xxhash

    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def _loaded(model: Any, digest: bool) -> dict[str, Any]:
    import torch
    import xxhash

    weights = dict(model.state_dict())
    listed = [(name, str(value.dtype), [*value.shape]) for name, value in weights.items() if torch.is_tensor(value)]
    found = {"header": xxhash.xxh3_128_hexdigest(json.dumps(listed).encode())}
    if not digest:
        return found
    state = xxhash.xxh3_128()
    for name, _, _ in listed:
        state.update(weights[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found | {"digest": state.hexdigest()}


def _commit(name: str, revision: str | None, config: RunConfig) -> str | None:
    """The commit of a model on the hub; None for a name that is not on it, which a plugin may know how to load."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        path = cached_file(name, "config.json", revision=revision, token=config.model.options.get("token"))
    except (OSError, ValueError):
        return None
    return extract_commit_hash(path, None)
