"""One plugin beside the defaults, and single hooks of it called as in a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sftkit.data.counts import Counts
from sftkit.errors import Problem, SftkitError
from sftkit.plugin.base import Plugin
from sftkit.plugin.calls import make_manager
from sftkit.plugin.registry import discover, load_class, name_of
from sftkit.plugin.select import Choice, select
from sftkit.plugin.selected import DEFAULTS, PluginSet, Selected
from sftkit.testing.tiny import tiny_config

if TYPE_CHECKING:
    from datasets import Dataset


def plugin_set(plugin: Plugin) -> PluginSet:
    """One plugin object and the default plugins, selected as for a run; its ``hook`` calls their hooks.

    Raises:
        AssertionError: if the plugin cannot be selected: a hook or an argument is misspelt, or a package is missing.
    """
    plugins, problems = select([Choice(name_of(type(plugin), discover()), instance=plugin)])
    if plugins is None:
        raise AssertionError(str(SftkitError(problems)))
    return plugins


def run_problems(plugin: Plugin, **sections: Any) -> list[Problem]:
    """The problems that one plugin's ``check_run`` reports, called as in a run.

    Its requirements are not checked, so a plugin that needs a GPU can be tested without one.

    Args:
        plugin: with the hook ``check_run``.
        sections: values of the configuration, as for `tiny_config`; ``plugins`` maps the names of further plugins to
            their options. The default plugins are selected too.
    """
    known = discover()
    own = name_of(type(plugin), known)
    chosen = {own: plugin}
    further = sections.pop("plugins", {})
    for name, options in [*further.items(), *DEFAULTS.items()]:
        if name not in chosen:
            chosen[name] = load_class(name, known)(**options)
    manager, problems = make_manager(list(chosen.items()))
    assert not problems, SftkitError(problems)
    plugins = PluginSet(tuple(Selected(*item) for item in chosen.items()), manager)
    found = plugins.hook.check_run(config=tiny_config(plugins=plugins.options(), **sections), plugins=plugins)
    return [problem for name, reported in found if name == own for problem in reported or ()]


def packed_rows(
    plugin: Plugin, rows: list[dict[str, Any]], *, split: str = "train", counts: Counts | None = None, **data: Any
) -> Dataset | None:
    """The rows that a packing plugin makes of examples, as a run would; None where it leaves the split single.

    Args:
        plugin: with the hook ``make_packer``.
        rows: examples with ``input_ids`` and ``labels``.
        split: ``"train"``, or the name of an evaluation set.
        counts: where it counts.
        data: values of the section ``data``, as ``max_length``.
    """
    import tempfile
    from pathlib import Path

    from datasets import Dataset

    from sftkit.data.columns import examples_of
    from sftkit.data.prepare import pack

    config, counts = tiny_config(data=data), counts or Counts()
    packer = plugin_set(plugin).hook.make_packer(split=split, config=config, counts=counts)
    if packer is None:
        return None
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "rows.arrow")
        pack([examples_of(Dataset.from_list(rows))], packer, path, split, config, counts)
        return Dataset.from_file(str(path), in_memory=True)
