"""Versions of packages, what they need of each other, and which plugins they make work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata

from sftkit.api import all_plugins, install_command, requirement_problem
from sftkit_commands.doctor.findings import Finding, Section

DISTRIBUTION = "sftkit-train"
#: Packages besides those that sftkit and its plugins require, which change what a run does.
OTHERS = ("tokenizers", "flash-attn", "kernels", "triton", "torchvision", "numpy", "deepspeed", "huggingface-hub")
_NAME = re.compile(r"^[\w.-]+")


def versions() -> Section:
    """The versions of sftkit, of what it requires, and of what plugins require."""
    names = [DISTRIBUTION, *_required(), *_of_plugins(), *OTHERS]
    found = [Finding(name, version) for name in dict.fromkeys(names) if (version := _version(name))]
    missing = sorted(name for name in _of_plugins() if not _version(name))
    return Section("Versions", [*found, *([Finding("not installed", ", ".join(missing))] if missing else [])])


def combinations() -> Section:
    """What sftkit requires, and what these packages require of each other."""
    own = [*_problems(DISTRIBUTION, _requirements(DISTRIBUTION))]
    checked = {name for name in (*_required(), *_of_plugins(), *OTHERS) if _version(name)}
    others = []
    for name in sorted(checked):
        known = [text for text in _requirements(name) if _bare(text) in checked]
        others += [Finding(each.name, each.value, "no", each.fix) for each in _problems(name, known)]
    fine = Finding("requirements", "the versions fit together", "ok")
    return Section("Combinations", [*own, *others] or [fine], needed=True)


def plugins() -> Section:
    """Which installed plugins work here."""
    found = []
    for info in all_plugins():
        name, status = info["name"], info["status"]
        if status == "ready":
            found.append(Finding(name, "", "ok"))
        elif status.startswith("missing: "):
            lacking = [text for text in info["requires"] if requirement_problem(text, name) is not None]
            found.append(Finding(name, f"needs {', '.join(lacking)}", "no", install_command(*lacking)))
        else:
            found.append(Finding(name, status, "wrong" if status.startswith("broken") else "no"))
    ready = ", ".join(each.name for each in found if each.status == "ok")
    return Section("Plugins", [Finding("ready", ready, "ok"), *(each for each in found if each.status != "ok")])


def _problems(owner: str, requirements: list[str]) -> Iterator[Finding]:
    for text in requirements:
        if (problem := requirement_problem(text, owner)) is not None:
            yield Finding(owner, problem.what, "wrong", problem.fix)


def _requirements(name: str) -> list[str]:
    """What a distribution requires, without its extras."""
    try:
        return [text for text in metadata.requires(name) or () if "extra ==" not in text]
    except metadata.PackageNotFoundError:
        return []


def _required() -> list[str]:
    return sorted(_bare(text) for text in _requirements(DISTRIBUTION))


def _of_plugins() -> list[str]:
    return sorted({_bare(text) for info in all_plugins() for text in info["requires"]})


def _bare(requirement: str) -> str:
    found = _NAME.match(requirement)
    return found[0].lower().replace("_", "-") if found else requirement


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
