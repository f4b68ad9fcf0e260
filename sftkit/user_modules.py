"""Modules that the user names, as in ``-p my_plugin:MyPlugin``: also from the working directory.

The directory is not on the path: a file in it that is named like a library, such as ``yaml.py``, must not run.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False  # as in typing, which is not imported before the path is in order
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


class DirectoryFinder:
    """Finds modules in a directory for the user's own modules alone; the last of `sys.meta_path`.

    Pickling it and unpickling it in another process, such as a data worker, installs it there.

    Args:
        directory: where the modules are.
        packages: the names that the user gave. Whatever these import from the directory is added.
    """

    def __init__(self, directory: str, packages: Iterable[str] = ()) -> None:
        self.directory, self.packages = directory, {*packages}

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """The module in the directory, if the user named it or one of the user's modules imports it."""
        if path is not None or (name not in self.packages and _importer() not in self.packages):
            return None
        found = PathFinder.find_spec(name, [self.directory])
        if found is not None:
            self.packages.add(name)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return _install, (self.directory, sorted(self.packages))


def import_user_module(name: str) -> ModuleType:
    """Import a module that the user names; it may be in the working directory, unless an installed one has its name.

    The module may import others from there, now or later.

    Args:
        name: of the module, with its packages.

    Raises:
        ImportError: if there is none; the module may raise anything.
    """
    package, directory = name.partition(".")[0], working_directory()
    importlib.invalidate_caches()
    if directory and PathFinder.find_spec(package, [directory]) is not None:
        _install(directory, [package])
    return importlib.import_module(name)


def finders() -> list[DirectoryFinder]:
    """What finds the user's modules in this process, to be pickled before objects of these modules."""
    return [finder for finder in sys.meta_path if isinstance(finder, DirectoryFinder)]


def forget_directory() -> None:
    """Remove the working directory from the start of the path, where ``python -m`` puts it."""
    if sys.path and not getattr(sys.flags, "safe_path", False) and sys.path[0] in ("", working_directory()):
        del sys.path[0]


def keep_out_of_children() -> None:
    """The interpreters that this process starts, such as data workers, do not search the working directory first.

    Python has such a variable since 3.11.
    """
    os.environ.setdefault("PYTHONSAFEPATH", "1")


def working_directory() -> str:
    """The working directory; empty if it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _install(directory: str, packages: Iterable[str]) -> DirectoryFinder:
    finder = next((each for each in finders() if each.directory == directory), None)
    if finder is None:
        finder = DirectoryFinder(directory)
        sys.meta_path.append(finder)
    finder.packages.update(packages)
    return finder


def _importer() -> str:
    """The package of the code that imports, which called the import system."""
    frame = sys._getframe(2)
    while frame.f_back is not None and _is_import_system(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_import_system(module: str) -> bool:
    return module.partition(".")[0] in ("importlib", "_frozen_importlib", "_frozen_importlib_external")
