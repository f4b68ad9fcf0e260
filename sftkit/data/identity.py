"""What prepared data depends on: rows, tokenizer, template, plugins and their options, and the code itself."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sftkit.config import RunConfig
    from sftkit.data.sources import DataSource, StreamSource
    from sftkit.plugin.selected import PluginSet

#: Hooks whose plugins decide what the examples are. What loads the tokenizer is seen in the tokenizer.
HOOKS = ("make_formatter", "make_packer")
LIBRARIES = ("datasets", "jinja2", "numpy", "pyarrow", "tokenizers", "transformers")
#: Settings of the section ``data`` that say where rows come from, or how they are kept: seen in the sources.
ELSEWHERE = frozenset({"train", "eval", "mix", "mix_until", "cache", "streaming", "subset", "split", "formatting"})


def parts_of(
    split: str,
    sources: Sequence[DataSource | StreamSource],
    tokenizer: PreTrainedTokenizerBase,
    config: RunConfig,
    plugins: PluginSet,
    processor: Any = None,
) -> dict[str, Any]:
    """All that the rows of a split depend on, as plain data."""
    more = {} if processor is None else {"processor": processor.to_dict()}
    return more | {
        "split": split,
        "sources": [source.identity for source in sources],
        "data": config.data.model_dump(mode="json", exclude=set(ELSEWHERE)),
        "formatting": _function(config.data.formatting),
        "tokenizer": _tokenizer(tokenizer),
        "plugins": _plugins(plugins, config),
        "code": code_of("sftkit.data"),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
    }


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    import xxhash

    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return {
        "json": xxhash.xxh3_128_hexdigest(backend.to_str().encode()),
        "chat_template": getattr(tokenizer, "chat_template", None),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
    }


def _plugins(plugins: PluginSet, config: RunConfig) -> dict[str, Any]:
    filling = {impl.plugin_name for hook in HOOKS for impl in getattr(plugins.hook, hook).get_hookimpls()}
    return {
        item.name: {
            "options": config.plugins.get(item.name, {}),
            "version": item.version,
            "code": code_of(type(item.plugin).__module__),
        }
        for item in plugins.selected
        if item.name in filling
    }


def _function(function: Any) -> dict[str, str] | None:
    """The user's formatting function: its bytecode and what it closes over, and the module that it stands in."""
    if function is None:
        return None
    if isinstance(function, str):
        module = function.partition(":")[0]
        return {"name": function, "code": code_of(module)}
    from datasets.fingerprint import Hasher

    return {"hash": Hasher.hash(function), "code": code_of(getattr(function, "__module__", ""))}


def code_of(module: str) -> str:
    """A hash of the source of a module, or of every file of the package it is or lies in; empty where there is none."""
    loaded = sys.modules.get(module)
    if loaded is None:
        try:
            loaded = importlib.import_module(module)
        except (ImportError, ValueError):
            return ""
    file = getattr(loaded, "__file__", None)
    if not file:
        return ""
    path = Path(file)
    return _hash_files(tuple(sorted(path.parent.rglob("*"))) if path.name == "__init__.py" else (path,))


@functools.cache
def _hash_files(paths: tuple[Path, ...]) -> str:
    import xxhash

    digest = xxhash.xxh3_128()
    for path in paths:
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
