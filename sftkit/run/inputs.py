"""The inputs of a run: names and mappings for its configuration, and loaded objects."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sftkit.config.source import ConfigSource, read_yaml
from sftkit.config.train_checks import Surroundings
from sftkit.errors import Problem
from sftkit.models.adapt import loaded_model_problems
from sftkit.models.precision import precision_problems
from sftkit.training.completion_metrics import plain_name

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet

#: What `Pipeline(config=...)` takes.
OneConfiguration: TypeAlias = str | Path | Mapping[str, Any] | ConfigSource
Configuration: TypeAlias = OneConfiguration | Sequence[OneConfiguration] | None


@dataclass(frozen=True)
class RunInputs:
    """Loaded objects that take the place of names; none of them is changed."""

    model: Any = None
    tokenizer: Any = None
    train: Any = None
    eval: Any = None
    collator: Callable[[list[dict[str, Any]]], Any] | None = None
    callbacks: tuple[Any, ...] = field(default=())
    compute_metrics: Callable[..., dict[str, float]] | None = None

    def surroundings(self, config: RunConfig, plugins: PluginSet) -> Surroundings:
        """What the section ``train`` has to fit."""
        stopping = [item for item in self.callbacks if stops_early(item)]
        functions = chosen_metrics(config, plugins)
        return Surroundings(
            sets=self._sets(config),
            compute_metrics=self.compute_metrics is not None,
            open_metrics=len(stopping) < len(self.callbacks)
            or bool(plugins.fillers("make_loss") | plugins.fillers("trainer_callbacks"))
            or not all(hasattr(function, "names") for function in functions.values()),
            stops_early=bool(stopping),
            completing=tuple(
                value for name, each in functions.items() for value in getattr(each, "names", (plain_name(name),))
            ),
        )

    def _sets(self, config: RunConfig) -> tuple[str, ...]:
        sets = config.data.eval if self.eval is None else self.eval
        if isinstance(sets, Mapping) and not _is_dataset_dict(sets):
            return tuple(map(str, sets))
        return () if sets is None else ("eval",)

    def problems(self, config: RunConfig, plugins: PluginSet) -> list[Problem]:
        """Problems of these inputs with this configuration: slots that nothing fills, options of a loaded model.

        Raises:
            ConfigError: if two plugins set one option of the model.
        """
        loaded = {"load_tokenizer": self.tokenizer, "load_model": self.model, "make_collator": self.collator}
        needed = ["make_formatter", *(slot for slot, value in loaded.items() if value is None)]
        problems = plugins.unfilled(needed)
        problems += precision_problems(config, self.model, bool(plugins.fillers("adapt_model")))
        problems += _read_and_written(config)
        options = plugins.model_options(config)
        if self.model is None:
            return problems
        problems += loaded_model_problems(self.model, sorted(plugins.fillers("adapt_model")))
        if options:
            what = f"the model is loaded already, so {', '.join(options)} cannot be passed to from_pretrained"
            problems.append(Problem(what, "model", "pass the model's name, or load it with these options yourself"))
        return problems


def chosen_metrics(config: RunConfig, plugins: PluginSet) -> dict[str, Any]:
    """The functions that ``evaluate.metrics`` names, by name."""
    known = plugins.metrics(config) if config.evaluate.metrics else {}
    return {name: known[name] for name in config.evaluate.metrics}


def _read_and_written(config: RunConfig) -> list[Problem]:
    """The problem of a model in the output directory: the run would replace its files while it uses them."""
    output = config.train.get("output_dir")
    if output is None or not Path(config.model.name).is_dir():
        return []
    output, model = Path(output).resolve(), Path(config.model.name).resolve()
    if output != model and output not in model.parents:
        return []
    return [Problem("the model is in the output directory", "model.name", "choose another --output DIR")]


def stops_early(callback: Any) -> bool:
    """Whether a callback, or the class of one, is an `EarlyStoppingCallback`; found without importing transformers."""
    cls = callback if isinstance(callback, type) else type(callback)
    return any(base.__name__ == "EarlyStoppingCallback" for base in cls.__mro__)


def as_source(config: Any) -> ConfigSource:
    """A configuration, from a file, a mapping, another source, or several of them; the argument is copied."""
    if config is None:
        return ConfigSource()
    if isinstance(config, ConfigSource):
        return copy.deepcopy(config)
    if isinstance(config, Mapping):
        return ConfigSource(copy.deepcopy(dict(config)))
    if isinstance(config, list | tuple):
        merged = ConfigSource()
        for item in config:
            merged.merge(as_source(item))
        return merged
    return read_yaml(Path(config))


def is_map(source: ConfigSource, key: str) -> bool:
    """Whether a section of the configuration is a mapping."""
    return isinstance(source.values.get(key), Mapping)


def split_inputs(model: Any, data: Any, eval: Any, tokenizer: Any) -> tuple[dict[tuple[str, ...], Any], dict[str, Any]]:
    """Split arguments into names and mappings, by their key in the configuration, and loaded objects."""
    named: dict[tuple[str, ...], Any] = {}
    inputs: dict[str, Any] = {}
    for section, short, value in (("model", "name", model), ("data", "train", data)):
        if isinstance(value, str | Path):
            named[(section, short)] = str(value)
        elif isinstance(value, Mapping) and not _is_dataset_dict(value):
            named[(section,)] = value
        elif isinstance(value, list) and value and all(isinstance(item, str | Path) for item in value):
            named[(section, short)] = [str(item) for item in value]
        elif value is not None:
            inputs["model" if section == "model" else "train"] = value
            named[(section, short)] = f"loaded {type(value).__name__}"
    if isinstance(eval, str | Path | float | int) or _are_names(eval):
        named[("data", "eval")] = str(eval) if isinstance(eval, Path) else eval
    elif eval is not None:
        inputs["eval"] = eval
        named[("data", "eval")] = f"loaded {type(eval).__name__}"
    if isinstance(tokenizer, str | Path):
        named[("model", "tokenizer")] = str(tokenizer)
    elif tokenizer is not None:
        inputs["tokenizer"] = tokenizer
    return named, inputs


def _are_names(value: Any) -> bool:
    if isinstance(value, Mapping):
        return not _is_dataset_dict(value) and all(_are_names(v) or isinstance(v, str) for v in value.values())
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _is_dataset_dict(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "datasets"
