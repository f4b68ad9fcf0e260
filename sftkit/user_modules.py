"""Modules that the user names, as in ``-p my_plugin:MyPlugin``: also from a few directories.

These are beside the configuration files, or the working directory. None of them is on the path: a file in one that is
named like a library, such as ``yaml.py``, must not run.
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


#: Directories that are searched before the working directory, for the run that was configured last.
_first: list[str] = []


def search_first(directories: Iterable[str]) -> None:
    """Set the directories that `import_user_module` searches before the working directory.

    Args:
        directories: absolute paths.
    """
    _first[:] = directories


def import_user_module(name: str) -> ModuleType:
    """Import a module that the user names: from beside the configuration files, or from the working directory.

    An installed module of the same name takes precedence. The module may import others from its directory, now or
    later.

    Args:
        name: of the module, with its packages.

    Raises:
        ImportError: if there is none, or another of this name was imported for an earlier run; the module may raise
            anything.
    """
    package = name.partition(".")[0]
    importlib.invalidate_caches()
    for directory in filter(None, (*_first, working_directory())):
        if (found := PathFinder.find_spec(package, [directory])) is not None:
            _refuse_another(package, found)
            _install(directory, [package])
            break
    return importlib.import_module(name)


def module_directories() -> list[str]:
    """The directories of the run that was configured last in which modules of the user were found."""
    return [finder.directory for finder in finders() if finder.directory in (*_first, working_directory())]


def _refuse_another(package: str, found: ModuleSpec) -> None:
    """Raises:
    ImportError: if a module of this name was imported from another directory of the user's.
    """
    spec = getattr(sys.modules.get(package), "__spec__", None)
    origin = getattr(spec, "origin", None)
    if origin is None or found.origin is None or origin == found.origin:
        return
    folder, file = os.path.split(os.path.abspath(origin))
    folder = os.path.dirname(folder) if file == "__init__.py" else folder
    if any(finder.directory == folder and package in finder.packages for finder in finders()):
        fix = "rename one, or start a new process"
        raise ImportError(f"another module {package} was imported before, from {origin}: {fix}")


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
