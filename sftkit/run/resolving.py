"""The configuration of a run with its plugins, checked together with the run's inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sftkit.config.source import ConfigSource
from sftkit.config.train_checks import training_problems
from sftkit.errors import ConfigError, Problem, SftkitError
from sftkit.plugin.resolve import resolve
from sftkit.plugin.select import choices_from
from sftkit.run.accelerated import accelerate_problems
from sftkit.run.inputs import RunInputs

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet


def resolve_run(
    source: ConfigSource,
    choices: list[Any],
    inputs: RunInputs,
    known: Iterable[Problem] = (),
    trains: bool = True,
    rehearses: bool = True,
) -> tuple[RunConfig, PluginSet]:
    """The configuration and its plugins.

    Args:
        source: the raw values, with their places.
        choices: plugins that were chosen besides.
        inputs: loaded objects that take the place of names.
        known: problems that were found before.
        trains: whether the section ``train`` is for the Trainer of this run.
        rehearses: whether transformers and torch are asked about it, which takes seconds.

    Raises:
        ConfigError: every problem of the configuration and the inputs, and the ``known`` ones.
    """
    problems = list(known)
    try:
        config, plugins = resolve(source, choices_from(ConfigSource({"plugins": choices})), trains, ask=not problems)
    except SftkitError as error:
        raise ConfigError([*error.problems, *problems]) from None
    found = inputs.problems(config, plugins)
    if trains:
        around = inputs.surroundings(config, plugins)
        found = [*found, *training_problems(config, around), *accelerate_problems(config)]
        if (
            rehearses and not problems and not found
        ):  # transformers is only asked if nothing else is wrong: its import takes seconds
            from sftkit.training.rehearsal import rehearse

            found = [*rehearse(config, bool(around.sets))]
    problems += [replace(item, where=source.where(item.key)) if item.key else item for item in found]
    if problems:
        raise ConfigError(problems)
    return config, plugins
