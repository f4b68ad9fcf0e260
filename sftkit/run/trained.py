"""The model that a run has saved, or any other, loaded to be used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.config.models import DataSection, ModelSection, RunConfig
from sftkit.config.source import ConfigSource
from sftkit.errors import ConfigError, Problem
from sftkit.plugin.calls import hooks_filled
from sftkit.plugin.select import Choice, choices_from, select
from sftkit.run.manifest import read_manifest

if TYPE_CHECKING:
    from sftkit.plugin.selected import PluginSet

#: A plugin of the run is used again if it has one of these.
LOADING = ("load_tokenizer", "load_model", "attach_adapter", "model_options", "merge_adapter")
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class TrainedModel:
    """A loaded model in evaluation mode, and where it comes from.

    Attributes:
        name: the name that it was loaded by.
        model: the model, with its adapter if it has one.
        tokenizer: its tokenizer, with the chat template of the run.
        processor: the processor that the tokenizer is part of, if there is one.
        manifest: the manifest of the run that trained it; None for any other model.
        config: the configuration that loaded it.
        plugins: the plugins that loaded it.
        left_out: plugins of the run that quantized the base, if it was loaded unquantized.
    """

    name: str
    model: Any
    tokenizer: Any
    processor: Any = None
    manifest: dict[str, Any] | None = None
    config: RunConfig | None = None
    plugins: PluginSet | None = None
    left_out: tuple[str, ...] = ()


def read_run(directory: str | Path) -> dict[str, Any]:
    """The manifest of a run, whether or not it has ended.

    Raises:
        ConfigError: if there is no run in the directory.
    """
    if (manifest := read_manifest(Path(directory))) is not None:
        return manifest
    what = "there is no run in this directory" if Path(directory).is_dir() else "there is no such directory"
    raise ConfigError(Problem(what, str(directory), "name the output directory of `sftkit run`"))


def load_trained(
    name: str | Path,
    *,
    dtype: str | None = None,
    quantized: bool = True,
    plugins: Iterable[str] = (),
    device: str | None = None,
    trust_remote_code: bool = False,
) -> TrainedModel:
    """Load the model of a run, of a checkpoint in one, or any other model, with the plugins that loaded it for the run.

    Args:
        name: a run directory, a directory with a model or an adapter, or a hub name.
        dtype: of the weights, as ``model.dtype``; by default that of the run, else the checkpoint's.
        quantized: whether a base model that the run quantized is quantized again; else it is loaded in ``dtype``.
        plugins: further plugins that load it, as for ``--plugin``; ``no:NAME`` leaves out one of the run.
        device: where to put the model; by default the first accelerator, else the CPU.
        trust_remote_code: whether code that comes with the model may run; a run that allowed it is no permission.

    Raises:
        ConfigError: if there is no such model, the run has saved none, or a plugin that loads it does not work here.
    """
    from sftkit.models.embeddings import split_processor

    manifest, section, choices = _saved(Path(name))
    selected, left_out = _loaders([*choices, *choices_from(ConfigSource({"plugins": list(plugins)}))], quantized)
    section |= {"name": str(name), "trust_remote_code": trust_remote_code} | ({"dtype": dtype} if dtype else {})
    config = _checked(section, selected)
    tokenizer, processor = split_processor(selected.hook.load_tokenizer(config=config))
    model = _load(config, selected, tokenizer)
    if not getattr(model, "hf_device_map", None):
        model.to(device or _first_device())
    return TrainedModel(str(name), model.eval(), tokenizer, processor, manifest, config, selected, left_out)


def _saved(path: Path) -> tuple[dict[str, Any] | None, dict[str, Any], list[Choice]]:
    """The manifest of the run that saved a model, the section ``model`` to load it with, and the run's plugins.

    Raises:
        ConfigError: if the run has saved no model.
    """
    manifest = read_manifest(path) or read_manifest(path.parent)
    if manifest is None:
        return None, {"dtype": "auto"}, []
    if not any((path / file).is_file() for file in WEIGHTS):
        what = f"the run has saved no model: its status is {manifest['status']}"
        fix = "finish it with `sftkit run --resume`, or name one of its checkpoints"
        raise ConfigError(Problem(what, str(path), fix))
    section, options = manifest["config"]["model"], manifest["config"]["plugins"]
    chosen = [Choice(plugin, values, where=str(path)) for plugin, values in options.items()]
    return manifest, {"dtype": section["dtype"], "options": section["options"]}, chosen


def _checked(section: dict[str, Any], plugins: PluginSet) -> RunConfig:
    """The configuration that loads a model.

    Raises:
        ConfigError: with every problem of it.
    """
    model, data = ModelSection.model_validate(section), DataSection.model_validate({"train": "none"})
    config = RunConfig(model=model, data=data, plugins=plugins.options())
    plugins.import_first()
    found = [problem for _, found in plugins.hook.check_run(config=config, plugins=plugins) for problem in found or ()]
    if found:
        raise ConfigError(found)
    return config


def _loaders(choices: list[Choice], quantized: bool) -> tuple[PluginSet, tuple[str, ...]]:
    """Those of the chosen plugins, and of the defaults, that load models and tokenizers; and those left out.

    Raises:
        ConfigError: if one of them does not work here.
    """
    from sftkit.plugin.registry import discover, load_class

    known = discover()
    kept, left_out = [], []
    for choice in choices:
        filled = [] if choice.dropped else hooks_filled(load_class(choice.name, known))
        if not quantized and _quantizes(filled):
            left_out.append(choice.name)
        elif choice.dropped or {*filled} & {*LOADING}:
            kept.append(choice)
    plugins, problems = select(kept)
    if plugins is None:
        raise ConfigError(problems)
    return plugins, tuple(left_out)


def _quantizes(filled: list[str]) -> bool:
    """Whether a plugin may load quantized weights: by its options for the loader, or as loader for its own adapters."""
    return "model_options" in filled or {"load_model", "adapt_model"} <= {*filled}


def _load(config: RunConfig, plugins: PluginSet, tokenizer: Any) -> Any:
    from sftkit.models.adapters import is_adapter

    options = plugins.model_options(config)
    model = plugins.hook.load_model(config=config, options=options)
    if is_adapter(config.model.name):
        model = plugins.hook.attach_adapter(model=model, config=config)
    rows = model.get_input_embeddings().weight.shape[0]
    plugins.hook.resize_embeddings(model=model, tokenizer=tokenizer, new_token_ids=list(range(rows, len(tokenizer))))
    return model


def _first_device() -> str:
    import torch

    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
