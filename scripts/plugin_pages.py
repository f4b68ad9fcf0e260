"""Put what the code says of plugins into docs/plugins, docs/known-plugins.md and README.md; with --check, fail where they differ.

    python scripts/plugin_pages.py [--check]

The facts on a plugin's page are how to select and install it, its hooks, and what it cannot be combined with. Its options
are those of the class, with the descriptions that ``sftkit plugins NAME`` shows. Where a page has the mark for it, pairs of
runs with and without the plugin are compared.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import _pages
from plugin_figures import measured

from sftkit.plugin.base import Plugin
from sftkit.plugin.calls import hooks_filled
from sftkit.plugin.describe import describe_options
from sftkit.plugin.hookspecs import Hooks
from sftkit.plugin.selected import DEFAULTS

try:
    import tomllib
except ModuleNotFoundError:  # before Python 3.11
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
README, INDEX, PAGES = ROOT / "README.md", ROOT / "docs" / "known-plugins.md", ROOT / "docs" / "plugins"
RESULTS = ROOT / "benchmarks" / "results"

DEFAULT_GROUP = "Selected by default"
#: Groups of plugins, each with its hooks: the first group of which a plugin fills a hook is its own.
GROUPS: dict[str, set[str]] = {
    "Several GPUs": {"make_engine"},
    "Data and what is trained": {"filter_rows", "add_tokens", "make_packer", "make_formatter"},
    "Optimizers": {"make_optimizer"},
    "Adapters and quantization": {"adapt_model", "quantize_model"},
    "Speed and memory": {"patch_kernels", "reduce_activations", "make_collator"},
    "Loss and noise": {"make_loss", "inject_noise"},
    "What it learned": {"trainer_callbacks", "metrics"},
}
#: Plugins that fill hooks of no group, such as a context around the training, which may be for anything.
EXCEPTIONS = {"compile": "Speed and memory", "rope_scaling": "Data and what is trained"}
#: The groups as they are listed.
ORDER = (
    DEFAULT_GROUP,
    *("Data and what is trained", "Loss and noise", "Adapters and quantization", "Optimizers"),
    *("Speed and memory", "Several GPUs", "What it learned"),
)


def built_in() -> dict[str, type[Plugin]]:
    """The plugins of this distribution by name, as pyproject.toml lists them."""
    found = {}
    for name, value in sorted(_project()["entry-points"]["sftkit"].items()):
        module, _, attribute = value.partition(":")
        found[name] = getattr(importlib.import_module(module), attribute)
    return found


def group_of(name: str, cls: type[Plugin]) -> str:
    """The group that a plugin is listed in.

    Raises:
        ValueError: if it fills no hook of any group.
    """
    if name in DEFAULTS:
        return DEFAULT_GROUP
    filled = set(hooks_filled(cls))
    found = EXCEPTIONS.get(name) or next((group for group, hooks in GROUPS.items() if hooks & filled), "")
    if not found:
        raise ValueError(f"no group has a hook of the plugin {name} -> name it in EXCEPTIONS")
    return found


def grouped() -> dict[str, list[str]]:
    """The names of the plugins of each group that has any."""
    plugins = built_in()
    groups: dict[str, list[str]] = {group: [] for group in ORDER}
    for name, cls in plugins.items():
        groups[group_of(name, cls)].append(name)
    return {group: names for group, names in groups.items() if names}


def extra_of(cls: type[Plugin]) -> str:
    """The smallest extra that installs what a plugin requires; an empty text if there is none."""
    needed = {_package(text) for text in cls.requires}
    extras = {name: set(map(_package, texts)) for name, texts in _project()["optional-dependencies"].items()}
    fitting = [name for name, packages in extras.items() if needed and needed <= packages]
    return min(fitting, key=lambda name: len(extras[name]), default="")


def facts(name: str, cls: type[Plugin]) -> str:
    """How to select and install a plugin, and what it fills and excludes."""
    return "\n".join(f"- {line}" for line in _facts(name, cls))


def options(cls: type[Plugin]) -> str:
    """The table of a plugin's options."""
    described = describe_options(cls, "`{}`".format)
    if not described:
        return "It has no options."
    rows = ["| option | values | default | description |", "|---|---|---|---|"]
    for option in described:
        default = option["default"]
        shown = default if default in ("", "required") else f"`{default}`"
        rows.append(_row(f"`{option['name']}`", option["type"], shown, option["description"]))
    return "\n".join(rows)


def index() -> str:
    """The built-in plugins by group, each with its first line and its hooks, and its extra where the group has any."""
    plugins = built_in()
    lines = []
    for group, names in grouped().items():
        columns = [
            "plugin",
            "what it does",
            "hooks",
            *(["extra"] if any(extra_of(plugins[each]) for each in names) else []),
        ]
        lines += [f"### {group}", "", _row(*columns), "|---" * len(columns) + "|"]
        for name in names:
            hooks = ", ".join(f"`{hook}`" for hook in hooks_filled(plugins[name]) if hook != "check_run")
            extra = f"`{found}`" if (found := extra_of(plugins[name])) else ""
            summary = inspect.cleandoc(plugins[name].__doc__ or "").splitlines()[0].rstrip(".")
            lines.append(_row(f"[{name}](plugins/{name}.md)", *(summary, hooks, extra)[: len(columns) - 1]))
        lines.append("")
    return "\n".join(lines).rstrip()


def overview() -> str:
    """The groups with their plugins, for README.md."""
    lines = ["| subject | plugins |", "|---|---|"]
    for group, names in grouped().items():
        lines.append(_row(group, ", ".join(f"[{name}](docs/plugins/{name}.md)" for name in names)))
    return "\n".join(lines)


def pages() -> dict[Path, str]:
    """The text of each page, with everything between its marks as the code has it.

    Raises:
        ValueError: if a page lacks a mark.
    """
    found = {INDEX: _filled(INDEX, "built-in plugins", index()), README: _filled(README, "plugins", overview())}
    for name, cls in built_in().items():
        path = PAGES / f"{name}.md"
        text = _filled(path, "facts", facts(name, cls))
        text = between(path, text, "options", options(cls))
        if "<!-- measured -->" in text:
            text = between(path, text, "measured", measured(name, RESULTS))
        found[path] = text
    return found


def _facts(name: str, cls: type[Plugin]) -> Iterator[str]:
    required = [each["name"] for each in describe_options(cls) if each["default"] == "required"]
    needed = ":" + ",".join(f"{each}=..." for each in required) if required else ""
    if name in DEFAULTS:
        options = ", ".join(f"{option}: {str(value).lower()}" for option, value in DEFAULTS[name].items())
        yield f"**Selected by default**{options and f' with `{options}`'}; `-p no:{name}` drops it."
    else:
        yield f"**Select it** with `-p {name}{needed}`, or under `plugins` in the configuration."
    if cls.requires:
        packages = ", ".join(f"`{text}`" for text in cls.requires)
        extra = extra_of(cls)
        yield f'**Install** {packages}: `pip install "sftkit-train[{extra}]"`.' if extra else f"**Needs** {packages}."
    if cls.needs_gpu:
        yield "**Needs a GPU.**"
    if cls.conflicts:
        yield f"**Not together with** {_links(cls.conflicts)}."
    if cls.replaces:
        yield f"**Replaces** {_replaced(cls.replaces)}."
    signatures = {each: list(inspect.signature(getattr(Hooks, each)).parameters)[1:] for each in hooks_filled(cls)}
    links = [f"[`{hook}`](../hooks.md#{hook}{'-'.join(names)})" for hook, names in signatures.items()]
    yield f"**Hooks**: {', '.join(links)}."


def _replaced(fields: Mapping[str, str]) -> str:
    shown = [f"`train.{name}`" + (f" by `{option}`" if option else "") for name, option in fields.items()]
    return ", and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]


def _row(*cells: str) -> str:
    return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|"


def _links(names: tuple[str, ...]) -> str:
    return ", ".join(f"[{name}]({name}.md)" for name in sorted(names))


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def _package(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def _filled(path: Path, mark: str, block: str) -> str:
    return between(path, path.read_text(encoding="utf-8"), mark, block)


def between(path: Path, text: str, mark: str, block: str) -> str:
    """The text of a page with this block between the two marks.

    Raises:
        ValueError: if it does not have each mark once.
    """
    return _pages.between(path, text, f"<!-- {mark} -->", f"<!-- /{mark} -->", f"\n{block}\n")


if __name__ == "__main__":
    _pages.write(__doc__, "plugin_pages.py", pages)
