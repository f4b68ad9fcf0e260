"""Advice in errors: options of the command line, or arguments of `Pipeline` for runs that Python starts."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from sftkit.errors import Interrupted, Problem, SftkitError
from sftkit.redact import hide

Method = TypeVar("Method", bound=Callable[..., Any])

#: What errors call something on the command line, and in Python; the first that matches is used.
_OPTIONS = (
    (r"`sftkit run --resume`|--resume(?! auto)", "resume=True"),
    (r"--resume auto", 'resume="auto"'),
    (r"--overwrite", "overwrite=True"),
    (r"--allow-change ([\w.]+)", r'allow_changes=["\1"]'),
    (r"--allow-change", "allow_changes"),
    (r"choose another --output(?: DIR)?", 'choose another train={"output_dir": DIR}'),
    (r"with --output\b", 'with train={"output_dir": DIR}'),
    (r"to the file, or use --(model|data) on the command line", r"to the file, or use Pipeline(\1=...)"),
)


def in_python(text: str) -> str:
    """A text of an error with arguments of `Pipeline` in the place of options of the command line."""
    for pattern, words in _OPTIONS:
        text = re.sub(pattern, words, text)
    return text


def problem_in_python(problem: Problem) -> Problem:
    """A problem whose advice is for Python."""
    return replace(problem, what=in_python(problem.what), where=in_python(problem.where), fix=in_python(problem.fix))


def for_the_caller(method: Method) -> Method:
    """A method of `Pipeline` whose errors advise how the run was started: by a command, or in Python."""

    @functools.wraps(method)
    def worded(self: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return method(self, *arguments, **options)
        except SftkitError as error:
            if self.from_command:
                raise
            problems = [problem_in_python(problem) for problem in error.problems]
            raise type(error)(problems).with_traceback(error.__traceback__) from error.__cause__
        except Interrupted as error:
            if self.from_command or error.directory is None:
                raise
            raise _continued(error).with_traceback(error.__traceback__) from None

    return worded  # type: ignore[return-value]


def _continued(error: Interrupted) -> Interrupted:
    """The interruption with the arguments that continue the run."""
    from sftkit.checkpoints import newest

    assert error.directory is not None
    resume = "True" if newest(error.directory, contents=False).path else '"auto"'
    how = f'continue with Pipeline(..., train={{"output_dir": "{error.directory}"}}, resume={resume})'
    return Interrupted(f"{error}; {how}", error.exit_code, error.directory)


def named(section: Any) -> str:
    """The name of a model or of data, for people."""
    value = section.get("name", section.get("train", section.get("mix"))) if isinstance(section, Mapping) else section
    return hide(", ".join(map(str, value)) if isinstance(value, list | Mapping) else str(value))
