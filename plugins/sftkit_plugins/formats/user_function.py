"""The user's own formatting function, for one row or for a batch."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sftkit.api import (
    WEIGHT_FIX,
    Columns,
    ConfigError,
    DataError,
    Document,
    Formatter,
    Loss,
    Problem,
    RowError,
    Skipped,
    Span,
    is_weight,
    nearest,
)

NOTHING = Skipped("the formatting function returned nothing")
_KEY = ("data", "formatting")
_RETURNS = (
    "return for one row a text or a list of (text, trained) pairs, perhaps with a weight behind, or for a batch "
    "(a mapping of column to list) a list with one of these for each row"
)


@dataclass(frozen=True)
class UserFunction(Formatter):
    """A function given as ``data.formatting``, as a callable or ``module:function``.

    It is called with one row, or with a batch of rows as columns: which of the two is found out on the first batch,
    by calling it with three rows as columns. A list of three documents makes it a function of batches.

    Args:
        function: the callable or its name.
        loss: ``data.loss``: ``all`` trains on everything, anything else on the spans that are marked.
    """

    function: str | Callable[..., Any]
    loss: Loss | None = None
    _found: dict[str, bool] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was found out, so that a used formatter pickles to the same bytes as a fresh one."""
        return {"function": self.function, "loss": self.loss, "_found": {}}

    def __call__(self, rows: Columns) -> list[Document | Skipped]:
        """What the function returns, as spans.

        Raises:
            RowError: if the function raises, or returns no document, for a row.
            DataError: if it is neither a function of rows nor of batches.
            ConfigError: if it returns texts where ``data.loss`` wants a part of them.
        """
        length = len(next(iter(rows.values()), ()))
        if not length:
            return []
        if "batched" not in self._found:
            self._found["batched"] = self._takes_batches(rows, length)
        results = self._call_batch(rows, length) if self._found["batched"] else self._call_rows(rows, length)
        return [self._document(result, index) for index, result in enumerate(results)]

    def _takes_batches(self, rows: Columns, length: int) -> bool:
        function, batch_error = resolve(self.function), None
        try:
            result = function(_batch(rows, [index % length for index in range(3)]))
            if _is_batch(result, 3):
                return True
            outcome = f"returned {_describe(result)}"
        except Exception as error:  # a function of rows may raise anything when it is given lists
            batch_error, outcome = error, f"raised {_told(error)}"
        try:
            result = function(_row(rows, 0))
        except Exception as error:
            if batch_error is not None and _told(error) != _told(batch_error):
                raise RowError(0, f"{self._raised(error)} (for three rows as columns: {_told(batch_error)})") from error
            raise RowError(0, self._raised(error), self._columns_hint(rows)) from error
        if _is_nothing(result) or _is_document(result):
            return False
        what = f"{self.name} {outcome} for three rows as columns, and returned {_describe(result)} for one row"
        raise DataError(Problem(f"{what}; {self._columns_hint(rows)}", "data.formatting", _RETURNS, _KEY))

    def _call_rows(self, rows: Columns, length: int) -> list[Any]:
        function, results = resolve(self.function), []
        for index in range(length):
            try:
                results.append(function(_row(rows, index)))
            except Exception as error:
                raise RowError(index, self._raised(error), self._columns_hint(rows)) from error
        return results

    def _call_batch(self, rows: Columns, length: int) -> list[Any]:
        function = resolve(self.function)
        try:
            result = function(_batch(rows, range(length)))
        except Exception as error:
            self._blame_row(rows, length)
            what = f"{self._raised(error)} for a batch of {length} rows, and for none of them alone"
            raise DataError(Problem(what, "data.formatting", self._columns_hint(rows), _KEY)) from error
        if not isinstance(result, list) or len(result) != length:
            what = f"{self.name} returned {_describe(result)} for a batch of {length} rows"
            raise DataError(Problem(what, "data.formatting", "return a list with one document for each row", _KEY))
        return result

    def _blame_row(self, rows: Columns, length: int) -> None:
        for index in range(length):
            try:
                resolve(self.function)(_batch(rows, [index]))
            except Exception as error:
                raise RowError(index, self._raised(error), self._columns_hint(rows)) from error

    def _document(self, result: Any, index: int) -> Document | Skipped:
        if _is_nothing(result):
            return NOTHING
        if isinstance(result, str):
            if self.loss not in (None, "all"):
                what = f"{self.name} returns text, in which no part is marked: {self.loss} cannot be trained"
                fix = "return (text, trained) pairs, or use -p completion_only:response_template=... without data.loss"
                raise ConfigError(Problem(what, "data.loss", fix, ("data", "loss")))
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
        """The function's name, for messages."""
        if isinstance(self.function, str):
            return self.function
        return str(getattr(self.function, "__qualname__", type(self.function).__qualname__))

    def _raised(self, error: Exception) -> str:
        return f"the formatting function {self.name} raised {_told(error)}"

    def _columns_hint(self, rows: Columns) -> str:
        return f"the columns are: {', '.join(rows)}"


def resolve(function: str | Callable[..., Any]) -> Callable[..., Any]:
    """The callable itself, or what ``module:function`` names; the current directory can be imported from.

    Raises:
        ConfigError: if it cannot be imported or called.
    """
    return _import(function) if isinstance(function, str) else function


@functools.cache
def _import(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise _unusable(f"{name!r} names no function", "write module:function, as in prompts:format_row")
    directory = os.getcwd()
    sys.path.insert(0, directory)
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # the user's module may raise anything
        what = f"`import {module}` raises {_told(error)}"
        raise _unusable(what, f"mend it, or run where {module}.py is (looked in {directory} first)") from error
    finally:
        sys.path.remove(directory)
        if directory not in sys.path:
            sys.path.append(directory)  # for what the module imports later, and for unpickling in workers
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = nearest(part, vars(found)) or f"it is read from {getattr(found, '__file__', module)}"
            raise _unusable(f"{module} has no {attribute!r}", known)
        found = getattr(found, part)
    if not callable(found):
        raise _unusable(f"{name} is of type {type(found).__name__}, not a function", "name a function")
    return found


def _unusable(what: str, fix: str) -> ConfigError:
    return ConfigError(Problem(what, "data.formatting", fix, _KEY))


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


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
