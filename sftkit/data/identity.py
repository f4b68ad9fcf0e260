"""What prepared data depends on: rows, tokenizer, chat template, plugins with their options, and the code itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.data.code import code_of
from sftkit.data.contents import content_of
from sftkit.data.opening import MAGIC, is_remote
from sftkit.data.sources import DataSource, StreamSource, named_source, source_labels
from sftkit.data.tokenizing.backend import backend_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet

#: Hooks that decide what the examples are. Plugins that load or change the tokenizer are covered by the tokenizer.
HOOKS = ("make_formatter", "make_packer")
#: The hook that decides which rows of the training data there are.
FILTER = "filter_rows"
LIBRARIES = ("datasets", "jinja2", "numpy", "pyarrow", "tokenizers", "transformers")
#: Keys of the section ``data`` that only say where rows come from or how they are kept; the sources cover them.
ELSEWHERE = frozenset({"train", "eval", "mix", "mix_until", "cache", "prepared", "streaming", "subset", "split"})
OF_STREAMS = frozenset({"shuffle_buffer", "window"})


def parts_of(
    split: str,
    sources: Sequence[DataSource | StreamSource],
    tokenizer: PreTrainedTokenizerBase,
    config: RunConfig,
    plugins: PluginSet,
    processor: Any = None,
) -> dict[str, Any]:
    """Everything that the rows of a split depend on, as plain data; neither paths nor the machine are part of it."""
    more: dict[str, Any] = {} if processor is None else {"processor": processor.to_dict()}
    labels = source_labels(sources)
    if len(labels) > 1:
        more["labels"] = labels
    if sources and FILTER in _hooks(split, config) and (files := _files(plugins, config)):
        more["files of filters"] = files
    without = ELSEWHERE if config.data.streaming and split == "train" else ELSEWHERE | OF_STREAMS
    return more | {
        "split": split,
        "sources": [source.identity for source in sources],
        "data": config.data.model_dump(mode="json", exclude=set(without)),
        "tokenizer": _tokenizer(tokenizer),
        "plugins": _plugins(plugins, config, _hooks(split, config)),
        "code": code_of("sftkit.data"),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
    }


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    import xxhash

    read = "text" if tokenizer.split_special_tokens else ""  # not in the file
    return {
        "json": xxhash.xxh3_128_hexdigest(f"{backend_of(tokenizer).to_str()}{read}".encode()),
        "chat_template": getattr(tokenizer, "chat_template", None),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
    }


def _hooks(split: str, config: RunConfig) -> tuple[str, ...]:
    """The hooks that decide what the rows of a split are; rows are held out of those that filters have left."""
    return (*HOOKS, FILTER) if split == "train" or isinstance(config.data.eval, float) else HOOKS


def _filling(plugins: PluginSet, hooks: Sequence[str]) -> set[str]:
    return {impl.plugin_name for hook in hooks for impl in getattr(plugins.hook, hook).get_hookimpls()}


def _plugins(plugins: PluginSet, config: RunConfig, hooks: Sequence[str]) -> dict[str, Any]:
    filling, filters = _filling(plugins, hooks), _filling(plugins, [FILTER])
    return {
        item.name: {
            "options": {
                name: _base_names(value) if item.name in filters and name in item.plugin.paths else _option(value)
                for name, value in config.plugins.get(item.name, {}).items()
            },
            "version": item.version,
            "code": code_of(type(item.plugin).__module__),
        }
        for item in plugins.selected
        if item.name in filling
    }


def _files(plugins: PluginSet, config: RunConfig) -> dict[str, Any]:
    """What identifies the contents of the files that options of filters name."""
    found: dict[str, Any] = {}
    filters = _filling(plugins, [FILTER])
    for item in plugins.selected:
        for option in item.plugin.paths if item.name in filters else ():
            value = config.plugins.get(item.name, {}).get(option)
            names, where = [value] if isinstance(value, str) else value or [], f"plugin {item.name}, option {option}"
            found |= {f"{item.name}.{option}": [_content(name, config, where) for name in names]} if names else {}
    return found


def _content(name: str, config: RunConfig, where: str) -> Any:
    if Path(name).is_file():
        return content_of(name, where)
    known = Path(name).is_dir() or is_remote(name) or any(char in name for char in MAGIC)
    return named_source(name, None, config.data, where).identity if known else name


def _base_names(value: Any) -> Any:
    """Paths without folders: the contents of files matter, and not where they are."""
    return Path(value).name if isinstance(value, str) else [Path(name).name for name in value or ()]


def _option(value: Any) -> Any:
    """An option's value; of a function, or the name ``module:function`` of one, also its code."""
    if callable(value):
        from datasets.fingerprint import Hasher

        return {"hash": Hasher.hash(value), "code": code_of(getattr(value, "__module__", ""))}
    if isinstance(value, str) and re.fullmatch(r"[\w.]+:[\w.]+", value):
        return {"name": value, "code": code_of(value.partition(":")[0])}
    return value
