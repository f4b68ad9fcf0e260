"""What a plugin reports: problems and verdicts with a fix, metrics as numbers, callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, get_args

from sftkit.errors import Problem, nearest
from sftkit.testing.conformance.checks import CheckFailed, check, described, require, skip

if TYPE_CHECKING:
    from sftkit.testing.conformance.workbench import Workbench

FIX = "say in `fix` what the user can do"


@check("check_run", anywhere=True)
def problems_have_a_fix(bench: Workbench, hook: str) -> None:
    """It reports problems, each with the fix"""
    from sftkit.config import RunConfig
    from sftkit.plugin.select import Choice, select

    chosen = [Choice(bench.name, instance=bench.plugin)]
    plugins, problems = select(chosen)
    if plugins is None:
        skip("; ".join(problem.what for problem in problems))
    sections = bench.sections(bench.directory / "checked")
    for changed in ({}, {"eval": None}, {"streaming": True}):
        data = {**sections["data"], **changed}
        config = RunConfig(**{**sections, "data": data}, plugins=plugins.options())
        found = bench.own("check_run", config=config, plugins=plugins)
        for problem in found or ():
            what = f"it reports {problem!r:.80}, which is no Problem"
            require(isinstance(problem, Problem), what, "yield Problem(what, where, fix)")
            require(problem.what, "a problem does not say what is wrong", "say it in `what`")
            require(problem.fix, f"the problem {problem.what!r} has no fix", FIX)


@check("check_prepared")
def verdicts_have_a_fix(bench: Workbench, hook: str) -> None:
    """It returns verdicts, each with the fix if something is wrong"""
    from sftkit.run.verdict import Status, Verdict

    for verdict in bench.own("check_prepared", run=bench.prepared) or ():
        require(isinstance(verdict, Verdict), f"it yields {verdict!r:.80}, which is no Verdict", "yield Verdict(...)")
        known = get_args(Status)
        require(verdict.status in known, f"a verdict is {verdict.status!r}", f"use one of: {', '.join(known)}")
        require(verdict.name and verdict.what, f"{verdict!r:.80} lacks its name, or what was found", "give both")
        right = verdict.status == "ok" or verdict.fix
        require(right, f"the verdict {verdict.what!r} is {verdict.status}, without a fix", FIX)


@check("metrics")
def metrics_are_numbers(bench: Workbench, hook: str) -> None:
    """Metrics are functions of completions that return numbers"""
    from sftkit.training.completions import Completion

    functions = bench.own("metrics", config=bench.config) or {}
    what = f"it returns {type(functions).__name__}"
    require(isinstance(functions, Mapping), what, "return a mapping of names to functions")
    texts = [("What is 1 plus one?", "It is 2.", "It is 2."), ("Hello", "Good day to you.", "")]
    completions = [Completion(*each, row) for row, each in enumerate(texts)]
    for name, function in functions.items():
        try:
            found = function(completions)
        except ImportError as error:
            skip(f"the metric {name} needs a package that is not installed: {error}")
        values = found if isinstance(found, Mapping) else {name: found}
        for value in values.values():
            right = isinstance(value, Real) and not isinstance(value, bool)
            require(right, f"the metric {name} returns {value!r:.60}", "return a number, or numbers by name")
        _measures_nothing(name, function, completions)
        names = getattr(function, "names", None)
        if names is not None:
            what = f"the metric {name} returns {', '.join(values)}, and its names are {', '.join(names)}"
            require({*names} == {*values}, what, "list in `names` what it returns")


def _measures_nothing(name: str, function: Any, completions: list[Any]) -> None:
    """Before its training, a model may write nothing at all."""
    import dataclasses

    try:
        function([dataclasses.replace(each, text="") for each in completions])
    except Exception as error:
        what = f"the metric {name} fails if all completions are empty: {described(error)}"
        raise CheckFailed(what, "return a number: before its training, a model may write nothing") from error


@check("trainer_callbacks")
def callbacks_are_callbacks(bench: Workbench, hook: str) -> None:
    """It returns callbacks of the Trainer, new ones for each run"""
    from transformers import TrainerCallback

    first, second = (list(bench.own("trainer_callbacks", config=bench.config) or ()) for _ in range(2))
    for callback in first:
        what = f"it returns {callback!r:.60}, which is no TrainerCallback object"
        require(isinstance(callback, TrainerCallback), what, "return objects of classes derived from TrainerCallback")
        events = [name for name in dir(TrainerCallback) if name.startswith("on_")]
        for name in dir(callback):
            what = f"{type(callback).__name__}.{name} is never called: the Trainer has no such event"
            known = name in events or not name.startswith("on_")
            require(known, what, nearest(name, events) or "let its name begin with something else")
    shared: list[Any] = [callback for callback in first if any(callback is other for other in second)]
    require(not shared, "two runs get the same callback object", "make it in the hook: state would stay between runs")
