"""What is made of a trained model: one without its adapter, a quantized one, and its data prepared again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.config import was_loaded
from sftkit.errors import ConfigError, DataError, Problem
from sftkit.models.inspect import has_adapter
from sftkit.models.quantized import quantization_settings
from sftkit.plugin.calls import hooks_filled
from sftkit.run.manifest import data_section
from sftkit.trained.loading import TrainedModel, plugins_again

if TYPE_CHECKING:
    from sftkit.plugin.base import Plugin
    from sftkit.plugin.selected import PluginSet
    from sftkit.run.stages import PreparedRun

#: A plugin of the run is used again to prepare data if it has one of these.
PREPARING = ("load_tokenizer", "add_tokens", "make_formatter", "make_packer", "make_collator")
QUANTIZED_BASE = "the base of the adapter is a quantized checkpoint, and an adapter is only merged into full weights"


def merged_model(trained: TrainedModel) -> Any:
    """The model of a run without its adapter, with weights that compute the same. Changes the model.

    Args:
        trained: loaded with ``load_trained(name, dtype="float32", quantized=False)``.

    Raises:
        ConfigError: if its base is quantized, or its kind of adapter cannot be merged.
    """
    if not has_adapter(trained.model):
        raise ConfigError(Problem("the model has no adapter: there is nothing to merge", trained.name))
    if quantization_settings(trained.model):
        fix = "write the name of the unquantized model into its adapter_config.json as base_model_name_or_path"
        raise ConfigError(Problem(QUANTIZED_BASE, trained.name, fix))
    assert trained.plugins is not None
    merged = trained.plugins.hook.merge_adapter(model=trained.model, config=trained.config)
    if merged is None:
        raise ConfigError(Problem("no plugin merges this adapter", trained.name, "drop no:NAME for its default"))
    return merged.eval()


def quantize_model(
    choice: str, source: Path, target: Path, rows: Sequence[Sequence[int]], probes: Sequence[Sequence[int]]
) -> Sequence[Any]:
    """Quantize a saved model by one plugin.

    Args:
        choice: the plugin as for ``--plugin``, such as ``gptq:bits=4``.
        source: the directory of the model.
        target: an empty directory for the quantized one.
        rows: token ids of documents to calibrate on.
        probes: token ids of documents to compare on.

    Returns:
        For each probe, the logits of the quantized model, read back.

    Raises:
        ConfigError: if the plugin does not work here, quantizes no saved models, or cannot quantize this one.
    """
    plugin = quantizer(choice)
    logits: Sequence[Any] | None = plugin.hook.quantize_model(source=source, target=target, rows=rows, probes=probes)
    assert logits is not None
    return logits


def quantizer(choice: str) -> PluginSet:
    """The plugin set of one plugin that quantizes saved models.

    Raises:
        ConfigError: if the plugin does not work here, or quantizes no saved models.
    """
    from sftkit.plugin.registry import discover, load_class
    from sftkit.plugin.select import parse_choice, select

    known, where = discover(), "--quantize"
    chosen = parse_choice(choice, known, where)
    if chosen.dropped or not _quantizes(load_class(chosen.name, known)):
        built_in = [name for name, points in known.items() if points[0].value.startswith("sftkit_plugins")]
        able = ", ".join(sorted(name for name in built_in if _quantizes(load_class(name, known))))
        raise ConfigError(Problem(f"plugin {chosen.name} quantizes no saved models", where, f"use one of: {able}"))
    plugins, problems = select([chosen])
    if plugins is None:
        raise ConfigError(problems)
    return plugins


def _quantizes(cls: type[Plugin]) -> bool:
    return "quantize_model" in hooks_filled(cls)


def prepare_again(trained: TrainedModel, data: str = "") -> PreparedRun:
    """The data of a run prepared once more, with the tokenizer that the run saved.

    Args:
        trained: the model of the run, or any other model.
        data: other data, as for ``--data``; by default that of the run.

    Raises:
        SftkitError: if the data is not there any more, or cannot be prepared on this machine.
    """
    from sftkit.run.pipeline import Pipeline

    section = data_section(trained.manifest) if trained.manifest else {}
    if data:
        section |= {"train": data, "eval": None, "mix": None}
    named = [*_names(section.get("train")), *_names(section.get("eval"))]
    if not named and not section.get("mix"):
        raise DataError(Problem("no run has trained this model, so there is no data of it", trained.name))
    if gone := next((name for name in named if was_loaded(name)), None):
        raise DataError(Problem(f"the data was passed as an object ({gone.removeprefix('loaded ')})", trained.name))
    plugins = plugins_again(trained.manifest, PREPARING) if trained.manifest else {}
    # No step is trained, but a stream is refused without their number.
    steps = {"max_steps": 1} if section.get("streaming") else {}
    sections = {"model": {"name": trained.name}, "data": section, "train": steps, "plugins": plugins}
    logger = logging.getLogger("sftkit")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        pipeline = Pipeline(config=sections, tokenizer=trained.processor or trained.tokenizer)
        return pipeline.stages().prepare()
    finally:
        logger.setLevel(level)


def _names(value: Any) -> list[str]:
    """The names of data in a value of the configuration; a fraction has none."""
    if isinstance(value, dict):
        return [name for item in value.values() for name in _names(item)]
    return [str(item) for item in value] if isinstance(value, list) else [value] if isinstance(value, str) else []
