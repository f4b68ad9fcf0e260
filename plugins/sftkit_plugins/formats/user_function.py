"""The user's own formatting function, for one row or for a batch."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import Self

from sftkit.api import (
    WEIGHT_FIX,
    Columns,
    ConfigError,
    DataError,
    Document,
    Formatter,
    Outcome,
    Problem,
    RowError,
    Skipped,
    Span,
    import_user_module,
    is_weight,
    nearest,
)
from sftkit_plugins.formats.options import Loss, two_choices

NOTHING = Skipped("the formatting function returned nothing")
WHERE = "plugin formats, option formatting"
_KEY = ("plugins", "formats", "formatting")
_RETURNS = (
    "for one row, return text or a list of (text, trained) or (text, trained, weight); for a batch (a mapping of "
    "column to list), return a list with one of these per row"
)


@dataclass(frozen=True)
class UserFunction(Formatter):
    """The function of the option ``formatting``, as a callable or ``module:function``.

    It is called with one row, or with a batch of rows as columns. The first batch decides which: the function is called
    with three rows as columns, and if it returns a list of three documents, it is a function of batches.

    Args:
        function: the callable or its name.
        loss: the option ``loss``: ``all`` trains everything, any other value the spans that are marked as trained.
    """

    function: str | Callable[..., Any]
    loss: Loss | None = None
    _found: dict[str, bool] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was found out, so that a used formatter pickles to the same bytes as a new one."""
        return {"function": self.function, "loss": self.loss, "_found": {}}

    @property
    def needs_original_rows(self) -> bool:
        """True: the function expects the columns of the data."""
        return True

    def defer_loss(self, plugin: str) -> Self:
        """A formatter that trains everything.

        Raises:
            ConfigError: if the user has set the option ``loss``.
        """
        if self.loss is not None:
            raise two_choices(self.loss, plugin)
        return dataclasses.replace(self, loss="all")

    def __call__(self, rows: Columns) -> list[Outcome]:
        """What the function returns, as spans.

        Raises:
            RowError: if the function raises an exception for a row, or returns something that is not a document.
            DataError: if it works neither for rows nor for batches.
            ConfigError: if it returns plain text, but ``loss`` asks for a part of it.
        """
        length = len(next(iter(rows.values()), ()))
        if not length:
            return []
        if "batched" not in self._found:
            self._found["batched"] = self._takes_batches(rows, length)
        results = self._call_batch(rows, length) if self._found["batched"] else self._call_rows(rows, length)
        return [self._document(result, index) for index, result in enumerate(results)]

    def _takes_batches(self, rows: Columns, length: int) -> bool:
        function, batch_error = load_function(self.function), None
        try:
            result = function(_batch(rows, [index % length for index in range(3)]))
            if _is_batch(result, 3):
                return True
            outcome = f"returned {_describe(result)}"
        except Exception as error:  # a function of rows may raise anything when it is called with lists
            batch_error, outcome = error, f"raised {_error_text(error)}"
        try:
            result = function(_row(rows, 0))
        except Exception as error:
            what = self._raised(error)
            if batch_error is not None and _error_text(error) != _error_text(batch_error):
                what = f"{what} (for three rows as columns: {_error_text(batch_error)})"
                raise RowError(0, what) from error
            raise RowError(0, what, self._columns_hint(rows)) from error
        if _is_nothing(result) or _is_document(result):
            return False
        what = f"{self.name} {outcome} for three rows as columns, and returned {_describe(result)} for one row"
        raise DataError(Problem(f"{what}; {self._columns_hint(rows)}", WHERE, _RETURNS, _KEY))

    def _call_rows(self, rows: Columns, length: int) -> list[Any]:
        function, results = load_function(self.function), []
        for index in range(length):
            try:
                results.append(function(_row(rows, index)))
            except Exception as error:
                raise RowError(index, self._raised(error), self._columns_hint(rows)) from error
        return results

    def _call_batch(self, rows: Columns, length: int) -> list[Any]:
        function = load_function(self.function)
        try:
            result = function(_batch(rows, range(length)))
        except Exception as error:
            self._find_bad_row(rows, length)
            what = f"{self._raised(error)} for a batch of {length} rows, but not for any of these rows alone"
            raise DataError(Problem(what, WHERE, self._columns_hint(rows), _KEY)) from error
        if not isinstance(result, list) or len(result) != length:
            what = f"{self.name} returned {_describe(result)} for a batch of {length} rows"
            raise DataError(Problem(what, WHERE, "return a list with one document per row", _KEY))
        return result

    def _find_bad_row(self, rows: Columns, length: int) -> None:
        for index in range(length):
            try:
                load_function(self.function)(_batch(rows, [index]))
            except Exception as error:
                raise RowError(index, self._raised(error), self._columns_hint(rows)) from error

    def _document(self, result: Any, index: int) -> Document | Skipped:
        if _is_nothing(result):
            return NOTHING
        if isinstance(result, str):
            if self.loss not in (None, "all"):
                what = f"loss={self.loss} is not possible: {self.name} returns text without marking any part of it"
                fix = "return (text, trained) pairs, or use plugin completion_only without the option loss"
                key = ("plugins", "formats", "loss")
                raise ConfigError(Problem(what, "plugin formats, option loss", fix, key))
            return (Span(result, True),)
        if not _is_document(result):
            raise RowError(index, f"{self.name} returned {_describe(result)}", _RETURNS)
        document = [Span(text, trained or self.loss == "all", *weight) for text, trained, *weight in result]
        for span in document:
            if not is_weight(span.weight):
                raise RowError(index, f"{self.name} returned a span with the weight {span.weight!r}", WEIGHT_FIX)
        return document if any(span.text for span in document) else NOTHING

    @property
    def name(self) -> str:
        """The name of the function, for messages."""
        if isinstance(self.function, str):
            return self.function
        return str(getattr(self.function, "__qualname__", type(self.function).__qualname__))

    def _raised(self, error: Exception) -> str:
        return f"the formatting function {self.name} raised {_error_text(error)}"

    def _columns_hint(self, rows: Columns) -> str:
        return f"the columns are: {', '.join(rows)}"


def load_function(function: str | Callable[..., Any]) -> Callable[..., Any]:
    """The callable itself, or the function with this name; see `import_function`."""
    return _cached_function(function) if isinstance(function, str) else function


def import_function(name: str) -> Callable[..., Any]:
    """The function ``module:function``; its module may be beside the configuration, or in the current directory.

    Raises:
        ConfigError: if it cannot be imported, or is not callable.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise _unusable(f"{name!r} is not of the form module:function", "write, for example, prompts:format_row")
    try:
        found: Any = import_user_module(module)
    except Exception as error:  # the user's module may raise anything
        what = f"`import {module}` raises {_error_text(error)}"
        fix = f"fix the module, put {module}.py beside the configuration file or in {os.getcwd()}, or set run.modules"
        raise _unusable(what, fix) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = nearest(part, vars(found)) or f"the module was read from {getattr(found, '__file__', module)}"
            raise _unusable(f"{module} has no {attribute!r}", known)
        found = getattr(found, part)
    if not callable(found):
        raise _unusable(f"{name} is of type {type(found).__name__}, not a function", "use the name of a function")
    return found


_cached_function = functools.cache(import_function)  # for every batch of rows


def _unusable(what: str, fix: str) -> ConfigError:
    return ConfigError(Problem(what, WHERE, fix, _KEY))


def _row(rows: Columns, index: int) -> dict[str, Any]:
    return {name: values[index] for name, values in rows.items()}


def _batch(rows: Columns, indices: Any) -> dict[str, list[Any]]:
    return {name: [values[index] for index in indices] for name, values in rows.items()}


def _is_batch(result: Any, length: int) -> bool:
    if not isinstance(result, list) or len(result) != length:
        return False
    return all(_is_nothing(item) or _is_document(item) for item in result)


def _is_nothing(result: Any) -> bool:
    return result is None or (isinstance(result, str | list | tuple) and not result)


def _is_document(result: Any) -> bool:
    if isinstance(result, str):
        return True
    return (
        isinstance(result, list | tuple)
        and bool(result)
        and all(isinstance(part, list | tuple) and len(part) in (2, 3) for part in result)
        and all(isinstance(part[0], str) and isinstance(part[1], bool) for part in result)
    )


def _describe(result: Any) -> str:
    if isinstance(result, dict):
        return f"a dict with the keys {', '.join(map(str, result))}"
    if isinstance(result, list | tuple):
        kinds = sorted({type(item).__name__ for item in result})
        return f"a {type(result).__name__} of {len(result)} ({', '.join(kinds) or 'empty'})"
    return "None" if result is None else f"a {type(result).__name__}: {str(result)[:60]!r}"


def _error_text(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
