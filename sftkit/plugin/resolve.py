"""From raw configuration to a checked `RunConfig` and its plugins, with every problem reported at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

from sftkit import demo
from sftkit.config.models import DataSection, EvaluateSection, ModelSection, RunConfig, RunSection
from sftkit.config.source import NOT_WRITTEN, SHORT, ConfigSource
from sftkit.config.train_checks import value_problems
from sftkit.config.train_fields import MOVED, allowed_fields, check_train, evaluates_only, takes_null
from sftkit.errors import ConfigError, Problem, nearest
from sftkit.plugin.base import wrong_value
from sftkit.plugin.paths import locate_all, module_folders
from sftkit.plugin.registry import discover, plugin_advice
from sftkit.user_modules import search_first

if TYPE_CHECKING:
    from sftkit.plugin.select import Choice
    from sftkit.plugin.selected import PluginSet


def resolve(
    source: ConfigSource, choices: Iterable[Choice] = (), trains: bool = True, ask: bool = True
) -> tuple[RunConfig, PluginSet]:
    """Check everything that can be known without reading data or weights.

    Args:
        source: the raw values, with their places.
        choices: plugins chosen outside of the file; they come after the file's.
        trains: whether the values of ``train`` are for sftkit's Trainer, so that their range is checked too.
        ask: whether plugins are asked for problems, which may take seconds.

    Raises:
        ConfigError: with every problem found.
    """
    from sftkit.plugin.select import choices_from, select

    source, problems = locate_all(source)
    search_first(module_folders(source))
    problems += [
        Problem("no such section", source.where((key,)), _instead_of(key))
        for key in source.values
        if key not in (*RunConfig.model_fields, NOT_WRITTEN)
    ]
    problems += _not_written(source)
    model, wrong = _section(ModelSection, "model", source)
    problems += wrong
    data, wrong = _section(DataSection, "data", source)
    problems += wrong
    run, wrong = _section(RunSection, "run", source)
    problems += wrong
    evaluate, wrong = _section(EvaluateSection, "evaluate", source)
    problems += wrong
    train, wrong = _train(source, trains)
    problems += wrong
    plugins = None
    try:
        plugins, wrong = select([*choices_from(source), *choices], source)
        problems += wrong
    except ConfigError as error:
        problems += error.problems
    if model and data and run and evaluate and plugins:
        if model.name == demo.NAME:
            model = model.model_copy(update={"name": str(demo.MODEL), "init": "random"})  # it has no weights
        sections = {"model": model, "data": data, "train": train, "evaluate": evaluate, "run": run}
        config = RunConfig(**sections, plugins=plugins.options())
        # Plugins may import heavy packages to answer, so the configuration itself is checked first.
        problems = problems or [
            *_stream_problems(config),
            *_replaced(config, plugins, source),
            *(_ask_plugins(config, plugins, source) if ask else ()),
        ]
        problems = problems or _metric_problems(config, plugins, source)
        if not problems:
            return config, plugins
    raise ConfigError(problems)


def _not_written(source: ConfigSource) -> Iterator[Problem]:
    """The Python objects of a run whose ``config.yaml`` this is, without which it is another run."""
    objects = source.values.get(NOT_WRITTEN)
    for name, what in objects.items() if isinstance(objects, Mapping) else ():
        fix = (
            f"run the Python script again; or remove this line, and set what takes the place of {name} if it is needed"
        )
        yield Problem(f"the run had {what}, which a file cannot hold", source.where((NOT_WRITTEN, str(name))), fix)


def _instead_of(section: str) -> str:
    """What to write instead of a section that does not exist."""
    if section in discover():
        return f"it is a plugin: write it under plugins, as `plugins: {{{section}: {{}}}}`, or add -p {section}"
    if fix := nearest(section, RunConfig.model_fields):
        return fix
    sections: dict[str, type[BaseModel]] = {
        "model": ModelSection,
        "data": DataSection,
        "run": RunSection,
        "evaluate": EvaluateSection,
    }
    keys = {name: set(cls.model_fields) for name, cls in sections.items()} | {"train": set(allowed_fields())}
    if homes := [name for name, known in keys.items() if section in known]:
        return f"it is a key: write {' or '.join(f'{name}.{section}' for name in homes)}"
    return f"the sections are: {', '.join(RunConfig.model_fields)}"


def _section(cls: type[BaseModel], name: str, source: ConfigSource) -> tuple[Any, list[Problem]]:
    raw = source.values.get(name)
    if raw is None and name not in SHORT:
        return cls.model_validate({}), []
    if raw is None:
        fix = f"add `{name}: ...` to the file, or use --{name} on the command line"
        return None, [Problem(f"no {name} is given", source.where((name,)), fix)]
    if name not in SHORT and not isinstance(raw, Mapping):
        return None, [
            Problem("must be a mapping", source.where((name,)), f"its keys are: {', '.join(cls.model_fields)}")
        ]
    values = raw if isinstance(raw, Mapping) else {SHORT[name]: raw}
    values = {key: value for key, value in values.items() if value is not None or key not in cls.model_fields}
    try:
        return cls.model_validate(values), []
    except ValidationError as error:
        problems: dict[tuple[str, ...], Problem] = {}
        for item in error.errors():
            # A union reports one error per member; only the part of the key that names a field counts.
            key = (name, *(str(part) for part in item["loc"][: _depth(cls, item["loc"])]))
            problems.setdefault(key, _problem(cls, item, source.where(key)))
        return None, list(problems.values())


def _depth(cls: type[BaseModel], loc: tuple[Any, ...]) -> int:
    field = cls.model_fields.get(str(loc[0])) if loc else None
    return 1 if field is None or len(get_args(field.annotation)) > 1 else len(loc)


def _problem(cls: type[BaseModel], item: Any, where: str) -> Problem:
    if item["type"] == "extra_forbidden":
        key, keys = str(item["loc"][0]), list(cls.model_fields)
        fix = f"set train.{key}" if key in allowed_fields() else plugin_advice(key)
        fix = fix or nearest(key, keys) or f"its keys are: {', '.join(keys)}"
        return Problem("no such key", where, fix)
    if item["type"] == "missing":
        return Problem("required, but not set", where, "set it")
    if not item["loc"]:  # of the section as a whole
        return Problem(item["msg"].removeprefix("Value error, "), where, "correct the section")
    field = cls.model_fields.get(str(item["loc"][0]))
    fix = f"{field.description}" if field and field.description else "correct the value"
    return Problem(wrong_value(item, several=len(item["loc"]) > _depth(cls, item["loc"])), where, fix)


def _train(source: ConfigSource, trains: bool) -> tuple[dict[str, Any], list[Problem]]:
    raw = source.values.get("train") or {}
    if not isinstance(raw, Mapping):
        fix = "write `train: {learning_rate: 2.0e-5}`"
        return {}, [Problem("must be a mapping", source.where(("train",)), fix)]
    fields = allowed_fields()
    given = {key: value for key, value in raw.items() if value is not None or takes_null(key, fields)}
    values, wrong = check_train(given)
    problems = []
    if trains:
        wrong += value_problems(values)
    for key, what, fix in wrong:
        advice = "" if key in MOVED or key in allowed_fields() else plugin_advice(key)
        problems.append(Problem(what, source.where(("train", key)), advice or fix))
    return values, problems


def _replaced(config: RunConfig, plugins: PluginSet, source: ConfigSource) -> Iterator[Problem]:
    """Training arguments that are set although a selected plugin does their work."""
    for item in plugins.selected:
        for key, option in item.plugin.replaces.items():
            if key in config.train:
                fix = f"remove it, and set plugins.{item.name}.{option}" if option else "remove it"
                yield Problem(f"plugin {item.name} takes its place", source.where(("train", key)), fix)


def _ask_plugins(config: RunConfig, plugins: PluginSet, source: ConfigSource) -> list[Problem]:
    plugins.import_first()
    problems = []
    for plugin, found in plugins.hook.check_run(config=config, plugins=plugins):
        found = list(found) if isinstance(found, Iterator) else found
        if wrong := _no_problems(found):
            problems.append(Problem(wrong, f"plugin {plugin}, hook check_run", "yield Problem(what, where, fix)"))
            continue
        for problem in found or ():
            place = source.where(problem.key) if problem.key else problem.where
            problems.append(dataclasses.replace(problem, where=place or f"plugin {plugin}"))
    return problems


def _no_problems(found: Any) -> str:
    """What is wrong with what a hook ``check_run`` returned; empty if nothing is."""
    if isinstance(found, str) or not isinstance(found or (), Iterable):
        return f"it returns {found!r:.80}"
    wrong = [each for each in found or () if not isinstance(each, Problem)]
    return f"it reports {wrong[0]!r:.80}, which is no Problem" if wrong else ""


def _metric_problems(config: RunConfig, plugins: PluginSet, source: ConfigSource) -> list[Problem]:
    """The problems of the names in ``evaluate.metrics``; also of plugins that offer one name."""
    known, where = plugins.metrics(config), source.where(("evaluate", "metrics"))
    problems = []
    for name in dict.fromkeys(config.evaluate.metrics):
        if name not in known:
            fix = nearest(name, known) or f"the metrics are: {', '.join(known)}; or name a function as module:function"
            problems.append(Problem(f"there is no metric {name!r}", where, fix))
        elif config.evaluate.metrics.count(name) > 1:
            problems.append(Problem(f"the metric {name} is listed twice", where, "list it once"))
    return problems


def _stream_problems(config: RunConfig) -> Iterator[Problem]:
    if not config.data.streaming:
        return
    if config.data.prepared is not None:
        what = "data.prepared is mapped from disk, and not streamed"
        yield Problem(what, "data.streaming", "remove data.streaming or data.prepared", ("data", "streaming"))
    if int(config.train.get("max_steps", -1)) < 0 and not evaluates_only(config):
        what = "a stream has no end, and train.max_steps is not set"
        yield Problem(what, "train.max_steps", "set train.max_steps to the number of steps to train")
    if isinstance(config.data.eval, float):
        what = "a fraction of a stream cannot be held out"
        yield Problem(what, "data.eval", "name a file or a hub split as data.eval", ("data", "eval"))
    if int(config.train.get("dataloader_num_workers", 0)) > 0:
        what = "a stream is prepared by a thread of each process, not by data workers"
        yield Problem(what, "train.dataloader_num_workers", "leave train.dataloader_num_workers at 0")
