"""What a plugin's class declares: its hooks, options, requirements and names. No hook is called."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from sftkit.errors import ConfigError, Problem, SftkitError, nearest
from sftkit.plugin.base import option_names
from sftkit.plugin.calls import hooks_filled, make_manager
from sftkit.plugin.describe import describe_options
from sftkit.plugin.registry import check_class, discover
from sftkit.plugin.selected import fields_of
from sftkit.testing.conformance.checks import IMPORT, CheckFailed, check, require, skip

if TYPE_CHECKING:
    from sftkit.testing.conformance.workbench import Workbench

HEAVY = ("torch", "transformers", "datasets", "peft", "numpy")
#: Marks the line that a fresh interpreter prints, among what the module may print itself.
MARK = "loaded by the import:"


@check(declared=True)
def can_be_selected(bench: Workbench, subject: str) -> None:
    """Hooks and arguments exist, and the class is a frozen dataclass"""
    cls, name = type(bench.plugin), bench.name
    require(
        hooks_filled(cls), f"{cls.__name__} fills no hook", "mark a method that is named like a hook with @hookimpl"
    )
    problems = [*make_manager([(name, bench.plugin)])[1]]
    problems += [problem for problem in check_class(cls, name) if "frozen dataclass" in problem.what]
    try:
        cls(**fields_of(bench.plugin))
    except ConfigError as error:
        problems += error.problems
    if problems:
        fixes = "; ".join(dict.fromkeys(problem.fix for problem in problems))
        raise CheckFailed("; ".join(problem.what for problem in problems), fixes)


@check(declared=True)
def has_a_docstring(bench: Workbench, subject: str) -> None:
    """The class has a docstring, whose first line is the summary"""
    own = vars(type(bench.plugin)).get("__doc__") or ""
    generated = own.startswith(f"{type(bench.plugin).__name__}(")  # by dataclass
    fix = "write what the plugin does in the first line of the class's docstring; `sftkit plugins` shows it"
    require(own.strip() and not generated, f"{type(bench.plugin).__name__} has no docstring", fix)


@check(declared=True)
def options_are_documented(bench: Workbench, subject: str) -> None:
    """Each option has a description"""
    bare = [option["name"] for option in describe_options(type(bench.plugin)) if not option["description"]]
    fix = 'annotate it: Annotated[float, Field(description="...")]; `sftkit plugins NAME` shows it'
    require(not bare, f"no description of the option {', '.join(bare)}", fix)


@check(declared=True)
def names_exist(bench: Workbench, subject: str) -> None:
    """Options, plugins and files that it names exist"""
    problems = list(_wrong_names(bench))
    if problems:
        raise CheckFailed(str(SftkitError([Problem(each.what) for each in problems])), problems[0].fix)
    unknown = [name for name in bench.plugin.conflicts if name not in discover() and ":" not in name]
    if unknown:
        skip(f"conflicts names {', '.join(unknown)}, which is not installed here")


def _wrong_names(bench: Workbench) -> Iterator[Problem]:
    plugin, options, known = bench.plugin, option_names(type(bench.plugin)), discover()
    for name in plugin.conflicts:
        if name == bench.name:
            yield Problem("conflicts names the plugin itself", fix="remove it")
        elif name not in known and (meant := nearest(name, known)):
            yield Problem(f"conflicts names {name!r}, and no such plugin is installed", fix=meant)
    for name in plugin.paths:
        if name not in options:
            yield Problem(f"paths names {name!r}, which is no option", fix=nearest(name, options) or "remove it")
    for option in plugin.replaces.values():
        if option and option not in options:
            yield Problem(f"replaces names {option!r}, which is no option", fix=nearest(option, options) or "remove it")
    for name in plugin.writes:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            yield Problem(f"writes names {name!r}, which is not inside the run directory", fix="name it relative to it")


@check(subject=IMPORT, declared=True)
def requirements_can_be_imported(bench: Workbench, subject: str) -> None:
    """The declared requirements are installed and can be imported"""
    if not type(bench.plugin).requires:
        return
    if bench.missing:
        skip(bench.missing)
    modules = metadata.packages_distributions()
    for name in {Requirement(item).name for item in type(bench.plugin).requires}:
        plain = re.sub(r"[-_.]+", "-", name).lower()
        tops = [top for top, names in modules.items() if plain in (re.sub(r"[-_.]+", "-", n).lower() for n in names)]
        for top in (top for top in tops if not top.startswith("_") and top.isidentifier()):
            try:
                importlib.import_module(top)
            except Exception as error:  # whatever a package raises, the plugin cannot use it
                what = f"{name} is installed, but `import {top}` raises {type(error).__name__}: {error}"
                raise CheckFailed(what, f"repair the installation of {name}") from error


@check(subject=IMPORT, declared=True)
def the_import_is_light(bench: Workbench, subject: str) -> None:
    """Importing the module loads no heavy library"""
    module = type(bench.plugin).__module__
    code = f"import sys, sftkit.api, {module}; print({MARK!r}, *[name for name in {HEAVY!r} if name in sys.modules])"
    path = os.pathsep.join(entry or os.getcwd() for entry in [*sys.path, os.getcwd()])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        if module == "__main__" or f"No module named {module.partition('.')[0]!r}" in last:
            skip(f"another process cannot import the module {module}")
        raise CheckFailed(f"`import {module}` fails in a fresh interpreter: {last}", "correct the import")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    loaded = line.removeprefix(MARK).strip()
    fix = "import it inside the methods that use it, and for annotations under `if TYPE_CHECKING:`"
    require(not loaded, f"`import {module}` loads {', '.join(loaded.split())}", fix)
