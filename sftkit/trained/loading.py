"""The model that a run has saved, or any other, loaded to be used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.checkpoints.choice import checkpoints
from sftkit.config.models import DataSection, ModelSection, RunConfig
from sftkit.config.source import ConfigSource
from sftkit.errors import ConfigError, Problem, nearest
from sftkit.plugin.calls import hooks_filled
from sftkit.plugin.select import Choice, choices_from, select
from sftkit.run.directories import RUNS, has_weights, runs_in, trained_runs
from sftkit.run.manifest import manifest_of, read_manifest

if TYPE_CHECKING:
    from sftkit.plugin.selected import PluginSet

#: A plugin of the run is used again if it has one of these.
LOADING = ("load_tokenizer", "load_model", "attach_adapter", "model_options", "merge_adapter")
BASE_FIX = "give its directory or hub name as the base model, as in `--base DIR`"


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
    found = [str(run) for run in runs_in(Path(directory))][:5]
    fix = f"name one of the runs in it: {', '.join(found)}" if found else "name the output directory of `sftkit run`"
    raise ConfigError(Problem(what, str(directory), fix))


def load_trained(
    name: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
    quantized: bool = True,
    plugins: Iterable[str] = (),
    device: str | None = None,
    tokenizer: str | Path | None = None,
    trust_remote_code: bool = False,
) -> TrainedModel:
    """Load the model of a run, of a checkpoint in one, or any other model, with the plugins that loaded it for the run.

    Args:
        name: a run directory, a directory with a model or an adapter, or a hub name.
        base: the base model of an adapter, if it is not where it was when the adapter was trained.
        dtype: of the weights, as ``model.dtype``; by default that of the run, else the checkpoint's.
        quantized: whether a base model that the run quantized is quantized again; else it is loaded in ``dtype``.
        plugins: further plugins that load it, as for ``--plugin``; ``no:NAME`` leaves out one of the run.
        device: where to put the model; by default the first accelerator, else the CPU.
        tokenizer: directory or hub name of another tokenizer, such as that of a run with this base model.
        trust_remote_code: whether code that comes with the model may run; a run that allowed it is no permission.

    Raises:
        ConfigError: if there is no such model, the run has saved none, its base model is not where it was, ``base`` is
            given for a model without an adapter, or a plugin that loads it does not work here.
    """
    from sftkit.models.adapters import base_of, is_adapter
    from sftkit.models.embeddings import split_processor

    manifest, section, choices = _saved(Path(name))
    if base is None and manifest and manifest["config"]["model"]["init"] == "random" and is_adapter(str(name)):
        what = "the adapter was trained on random weights, which no run saves"
        raise ConfigError(Problem(what, str(name), "train all weights, or an adapter on a model that has weights"))
    selected, left_out = _loaders([*choices, *choices_from(ConfigSource({"plugins": list(plugins)}))], quantized)
    section |= {"name": str(name), "trust_remote_code": trust_remote_code} | ({"dtype": dtype} if dtype else {})
    section |= _base_section(str(name), None if base is None else str(base))
    section |= {"tokenizer": str(tokenizer)} if tokenizer else {}
    config = _checked(section, _precision(manifest), selected, manifest)
    loaded, processor = split_processor(selected.hook.load_tokenizer(config=config))
    model = _load(config, selected, loaded, base_of(str(name))[0] if base is None else str(base))
    if not getattr(model, "hf_device_map", None):
        _put(model, device or _first_device())
    return TrainedModel(str(name), model.eval(), loaded, processor, manifest, config, selected, left_out)


def _saved(path: Path) -> tuple[dict[str, Any] | None, dict[str, Any], list[Choice]]:
    """The manifest of the run that saved a model, the section ``model`` to load it with, and the run's plugins.

    Raises:
        ConfigError: if the run has saved no model.
    """
    if path.is_file():
        raise ConfigError(Problem("this is a file", str(path), "name the directory of a run or a model"))
    manifest = manifest_of(path)
    if manifest is None and path.parts[:1] == (RUNS,) and not path.exists():  # which could be a name on the hub
        names = [run.name for run in trained_runs(Path(RUNS))]
        fix = nearest(path.name, names) or f"there is {', '.join(names[:5]) or 'no run'} in {Path(RUNS).absolute()}"
        raise ConfigError(Problem("there is no such run", str(path), fix))
    if manifest is None:
        _check_directory(path)
        return None, {"dtype": "auto"}, []
    if not path.exists():
        saved = ", ".join(found.name for found in checkpoints(path.parent).values())
        fix = f"there is {saved} in {path.parent}" if saved else f"the model of the run is {path.parent}"
        raise ConfigError(Problem("the run has no such checkpoint", str(path), fix))
    if not has_weights(path):
        what = f"the run has saved no model: its status is {manifest['status']}"
        saved = ", ".join(found.name for found in checkpoints(path).values())
        fix = f"finish it with `sftkit run --resume`{f', or name a checkpoint in it: {saved}' if saved else ''}"
        raise ConfigError(Problem(what, str(path), fix))
    section, options = manifest["config"]["model"], manifest["config"]["plugins"]
    chosen = [Choice(plugin, values, where=str(path)) for plugin, values in options.items()]
    return manifest, {"dtype": section["dtype"], "options": section["options"]}, chosen


def _check_directory(path: Path) -> None:
    """Check that a name which is a directory is one of a model.

    Raises:
        ConfigError: if there is none in it.
    """
    known = any((path / file).is_file() for file in ("config.json", "adapter_config.json"))
    if path.is_dir() and not known and not has_weights(path):
        names = [str(run) for run in trained_runs(path)][:5]
        fix = f"name one of the runs in it: {', '.join(names)}" if names else "name a run, a model or a hub name"
        raise ConfigError(Problem("there is no model in this directory", str(path), fix))


def _base_section(name: str, base: str | None) -> dict[str, Any]:
    """What the section ``model`` needs for an adapter whose base model is elsewhere.

    Raises:
        ConfigError: if the base model is not where the adapter says, or the model has no adapter.
    """
    from sftkit.models.adapters import base_of, is_adapter
    from sftkit.models.loading import TOKENIZER_FILES, looks_like_path

    if not is_adapter(name):
        if base is not None:
            what = "this model is no adapter, so it has no other base model"
            raise ConfigError(Problem(what, name, f"drop the base model {base!r}"))
        return {}
    where = base or base_of(name)[0]
    if looks_like_path(where) and not Path(where).is_dir():
        what = f"the base model of this adapter is not there: there is no directory {where!r}"
        missing = f"a relative path, looked up in {Path.cwd()}; " if not Path(where).is_absolute() else ""
        raise ConfigError(Problem(what, name, f"{missing}{BASE_FIX}"))
    own = any(Path(name, file).is_file() for file in TOKENIZER_FILES)
    return {} if base is None or own else {"tokenizer": base}


def _precision(manifest: dict[str, Any] | None) -> dict[str, Any]:
    """The mixed precision of a run: quantized layers compute in it."""
    train = manifest["config"]["train"] if manifest else {}
    return {name: train[name] for name in ("bf16", "fp16") if train.get(name)}


def _checked(
    section: dict[str, Any], train: dict[str, Any], plugins: PluginSet, manifest: dict[str, Any] | None
) -> RunConfig:
    """The configuration that loads a model; its rows are as long as those of the run, on which options may depend.

    Raises:
        ConfigError: with every problem of it.
    """
    length = {"max_length": manifest["config"]["data"]["max_length"]} if manifest else {}
    model, data = ModelSection.model_validate(section), DataSection.model_validate({"train": "none", **length})
    config = RunConfig(model=model, data=data, train=train, plugins=plugins.options())
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


def plugins_again(manifest: dict[str, Any], hooks: Iterable[str]) -> dict[str, Any]:
    """The plugins of a run that implement one of some hooks, with their options, to be used once more."""
    from sftkit.plugin.registry import discover, load_class

    known, wanted = discover(), {*hooks}
    chosen = manifest["config"]["plugins"].items()
    return {name: options for name, options in chosen if wanted & {*hooks_filled(load_class(name, known))}}


def _quantizes(filled: list[str]) -> bool:
    """Whether a plugin may load quantized weights: by its options for the loader, or as loader for its own adapters."""
    return "model_options" in filled or {"load_model", "adapt_model"} <= {*filled}


def _load(config: RunConfig, plugins: PluginSet, tokenizer: Any, base: str) -> Any:
    """The model with its adapter, and a row of the embeddings for each token.

    Raises:
        ConfigError: if it cannot be loaded; for the base model of an adapter, with the way to name another place.
    """
    from sftkit.models.adapters import base_options, is_adapter

    adapter = is_adapter(config.model.name)
    model_section = config.model.model_copy(update={"name": base} if adapter else {})
    base_config = config.model_copy(update={"model": model_section})
    try:
        options = plugins.model_options(base_config) | base_options(config.model.name)
        model = plugins.hook.load_model(config=base_config, options=options)
    except ConfigError as error:
        if not adapter or Path(base).is_dir():
            raise
        what = f"the base model {base!r} of this adapter cannot be loaded: {error.problems[0].what}"
        raise ConfigError(Problem(what, config.model.name, BASE_FIX)) from error
    if adapter:
        plugins.hook.prepare_base(model=model, config=config)
        model = plugins.hook.attach_adapter(model=model, config=config)
    rows = model.get_input_embeddings().weight.shape[0]
    plugins.hook.resize_embeddings(model=model, tokenizer=tokenizer, new_token_ids=list(range(rows, len(tokenizer))))
    return model


def _put(model: Any, device: str) -> None:
    """Put a model on a device.

    Raises:
        ConfigError: if there is no such device here.
    """
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        what = f"the device {device!r} cannot be used: {str(error).splitlines()[0]}"
        raise ConfigError(Problem(what, "--device", "`sftkit doctor` lists the devices")) from error
    model.to(device)


def _first_device() -> str:
    import torch

    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
