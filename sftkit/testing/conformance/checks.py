"""What a check of a plugin is, and what it can find."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

from sftkit.errors import ConfigError, HookError, SftkitError

if TYPE_CHECKING:
    from sftkit.testing.conformance.workbench import Workbench

Status: TypeAlias = Literal["passed", "failed", "skipped"]
#: What a check is about if it is about no single hook: what the class declares, its import, and whole runs with it.
PLUGIN, IMPORT, RUN = "plugin", "import", "run"
LEFT_OUT = "left out"  # why a check is skipped that the caller does not want


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    Attributes:
        subject: the hook that it is about, ``plugin``, ``import`` or ``run``.
        check: what it checks, in a few words.
        status: ``passed``, ``failed`` or ``skipped``.
        what: what is wrong, or why it was skipped.
        fix: how to fix it.
    """

    subject: str
    check: str
    status: Status
    what: str = ""
    fix: str = ""

    def __str__(self) -> str:
        what = f": {self.what}" if self.what else ""
        fix = f" -> {self.fix}" if self.fix else ""
        return f"{self.status}: {self.subject}: {self.check}{what}{fix}"


@dataclass(frozen=True)
class PluginReport:
    """The checks of one plugin.

    Attributes:
        plugin: its name.
        results: one for each check, grouped by subject, in the order of a run.
    """

    plugin: str
    results: tuple[CheckResult, ...]

    def _with(self, status: Status) -> tuple[CheckResult, ...]:
        return tuple(result for result in self.results if result.status == status)

    @property
    def passed(self) -> tuple[CheckResult, ...]:
        """The checks that the plugin passes."""
        return self._with("passed")

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """The checks that it fails, each with what is wrong and the fix."""
        return self._with("failed")

    @property
    def skipped(self) -> tuple[CheckResult, ...]:
        """The checks that were not made, each with the reason."""
        return self._with("skipped")

    def __str__(self) -> str:
        counts = f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"
        skipped = [f"skipped: {', '.join(subjects)}: {reason}" for reason, subjects in self.reasons.items()]
        return "\n".join([f"plugin {self.plugin}: {counts}", *map(str, self.failed), *skipped])

    @property
    def unchecked(self) -> dict[str, str]:
        """The hooks of which no check could be made, each with the reasons."""
        made = {result.subject for result in (*self.passed, *self.failed)}
        found: dict[str, str] = {}
        for reason, subjects in self.reasons.items():
            for subject in {*subjects} - made - {PLUGIN, IMPORT, RUN}:
                if reason != LEFT_OUT:
                    found[subject] = f"{found[subject]}; {reason}" if subject in found else reason
        return found

    @property
    def reasons(self) -> dict[str, list[str]]:
        """Why checks were skipped: each reason with the subjects of its checks."""
        found: dict[str, list[str]] = {}
        for result in self.skipped:
            subjects = found.setdefault(result.what, [])
            if result.subject not in subjects:
                subjects.append(result.subject)
        return found


class CheckFailed(Exception):  # noqa: N818 (it is an outcome, and no error of the kit)
    """A check found something wrong.

    Args:
        what: what is wrong.
        fix: how to fix it.
    """

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.fix = what, fix


class CheckSkipped(Exception):  # noqa: N818 (it is an outcome, and no error of the kit)
    """A check cannot be made here, or says nothing about this plugin; the argument is the reason."""


def require(condition: Any, what: str, fix: str) -> None:
    """Raises:
    CheckFailed: if the condition is not met.
    """
    if not condition:
        raise CheckFailed(what, fix)


def skip(reason: str) -> NoReturn:
    """Raises:
    CheckSkipped: always.
    """
    raise CheckSkipped(reason)


@dataclass(frozen=True)
class Check:
    """A function that tries one property of a plugin.

    Attributes:
        function: gets the workbench and the subject; raises `CheckFailed` or `CheckSkipped`.
        hooks: the hooks that it is about; it is made for each one that the plugin fills. Empty for every plugin.
        subject: ``plugin``, ``import`` or ``run`` for a check that is about no hook.
        declared: whether it reads what the class declares, and calls no hook.
        anywhere: whether it applies even if the plugin refuses the kit's run.
        processes: whether it starts several processes of a run, which takes longest.
    """

    function: Callable[[Workbench, str], None]
    hooks: tuple[str, ...] = ()
    subject: str = ""
    declared: bool = False
    anywhere: bool = False
    processes: bool = False

    @property
    def title(self) -> str:
        """What is checked: the first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().splitlines()[0].rstrip(".")

    def subjects(self, filled: Iterable[str]) -> Iterator[str]:
        """What it is made for, of a plugin that fills these hooks."""
        if self.hooks:
            yield from (hook for hook in filled if hook in self.hooks)
        else:
            yield self.subject

    def made(self, bench: Workbench, subject: str) -> CheckResult:
        """Make the check."""
        try:
            self.function(bench, subject)
        except CheckSkipped as reason:
            return CheckResult(subject, self.title, "skipped", str(reason))
        except CheckFailed as failed:
            return CheckResult(subject, self.title, "failed", failed.what, failed.fix)
        except ConfigError as error:
            status, what, fix = _refusal(bench, error)
            return CheckResult(subject, self.title, status, what, fix)
        except SftkitError as error:
            return CheckResult(subject, self.title, "failed", *_what_and_fix(error))
        except Exception as error:  # whatever the plugin raises, the other checks are made
            what = described(error, type(bench.plugin).__module__)
            return CheckResult(subject, self.title, "failed", what, "correct the plugin")
        return CheckResult(subject, self.title, "passed")


def _refusal(bench: Workbench, error: ConfigError) -> tuple[Status, str, str]:
    """What it means that a plugin raises a ConfigError: it cannot be used with the kit's model, unless it is at fault.

    What a run says of the plugin itself is a failure, and so is the refusal of a model that the author has named.
    """
    at_fault = any(problem.where.startswith(f"plugin {bench.name}, hook") for problem in error.problems)
    if bench.chosen_model or at_fault:
        what, fix = _what_and_fix(error)
        return "failed", what, fix or "correct the plugin, or what it is checked with"
    bench.refusals.append(str(error))
    return "skipped", f"it refuses the kit's model: {error}; name one that it works with", ""


def _what_and_fix(error: SftkitError) -> tuple[str, str]:
    """The problems of an error in one line, and their fixes."""
    problems = error.problems
    what = "; ".join(f"{problem.where}: {problem.what}" if problem.where else problem.what for problem in problems)
    fixes = dict.fromkeys(problem.fix for problem in problems if problem.fix)
    return f"{type(error).__name__}: {what}", "; ".join(fixes)


def described(error: BaseException, module: str) -> str:
    """An exception in one line, with the line of the plugin's code that led to it, or else the line that raised it.

    Args:
        error: the exception.
        module: the module of the plugin's class.
    """
    cause = error.__cause__ if isinstance(error, HookError) and error.__cause__ is not None else error
    text = " ".join(str(error).split())[:500]
    shown = text if isinstance(error, HookError) else f"{type(error).__name__}: {text}"
    places = list(traceback.walk_tb(cause.__traceback__))
    own = [place for place in places if f"{place[0].f_globals.get('__name__')}.".startswith(f"{module}.")]
    if not places:
        return shown
    frame, line = (own or places)[-1]
    return f"{shown} ({frame.f_code.co_filename}, line {line})"


def check(*hooks: str, subject: str = PLUGIN, **options: bool) -> Callable[[Callable[[Workbench, str], None]], Check]:
    """A decorator that makes a `Check` of a function.

    Args:
        hooks: those that it is about.
        subject: ``plugin``, ``import`` or ``run``, if it is about no hook.
        options: further attributes of the check.
    """

    def made(function: Callable[[Workbench, str], None]) -> Check:
        return Check(function, hooks, "" if hooks else subject, **options)

    return made
