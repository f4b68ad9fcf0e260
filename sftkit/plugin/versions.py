"""The version of the API for plugins: which one a plugin needs, and which of its parts are deprecated."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping
from typing import Any

from sftkit import DISTRIBUTION
from sftkit.errors import Problem

#: The version of `sftkit.api` and of the hooks; docs/api.md says when it changes.
API_VERSION = "1.0"


def api_problem(needed: Any, where: str) -> Problem | None:
    """What is wrong with the version of the API that a plugin states; None if it states none, or a fitting one.

    Args:
        needed: the plugin's ``api``, such as ``"1.2"``.
        where: the plugin.
    """
    if needed == "":
        return None
    if not (isinstance(needed, str) and re.fullmatch(r"\d+\.\d+", needed)):
        fix = f'write it as text, as in api = "{API_VERSION}"'
        return Problem(f"api = {needed!r} is not a version of the API", where, fix)
    (first, second), (ours, latest) = _numbers(needed), _numbers(API_VERSION)
    what = f"it needs version {needed} of the plugin API, and this sftkit has {API_VERSION}"
    if first < ours:
        return Problem(what, where, f"upgrade the plugin, or install an sftkit with API {first}")
    if (first, second) > (ours, latest):
        return Problem(what, where, f"upgrade sftkit: pip install --upgrade {DISTRIBUTION}")
    return None


def _numbers(version: str) -> tuple[int, int]:
    first, _, second = version.partition(".")
    return int(first), int(second)


def deprecated(since: str, until: str, instead: str) -> FutureWarning:
    """What a hook that goes away declares as pluggy's ``warn_on_impl``, or for an argument as ``warn_on_impl_args``.

    Args:
        since: the version of the API that deprecates it.
        until: the version that no longer has it.
        instead: what to write in its place.

    Example:
        >>> str(deprecated("1.3", "2.0", "use the hook make_collator"))
        'deprecated since version 1.3 of the plugin API, and removed in 2.0 -> use the hook make_collator'
    """
    return FutureWarning(f"deprecated since version {since} of the plugin API, and removed in {until} -> {instead}")


def warn_of_deprecated(plugin: str, hook: str, method: Any, spec: Mapping[str, Any]) -> bool:
    """Warn, at the line of a plugin's hook, if the hook or one of the arguments that it takes is deprecated.

    Args:
        plugin: the plugin's name.
        hook: the hook's name.
        method: the plugin's implementation.
        spec: the options of the hook's specification.

    Returns:
        Whether it did.
    """
    found = [] if spec["warn_on_impl"] is None else [f"hook {hook}: {spec['warn_on_impl']}"]
    for argument, warning in (spec["warn_on_impl_args"] or {}).items():
        if argument in inspect.signature(method).parameters:
            found.append(f"hook {hook}, argument {argument}: {warning}")
    code = inspect.unwrap(method).__code__
    for text in found:
        warnings.warn_explicit(f"plugin {plugin}, {text}", FutureWarning, code.co_filename, code.co_firstlineno)
    return bool(found)
