"""Code as a part of what prepared data depends on."""

from __future__ import annotations

import functools
import sys
from pathlib import Path


def code_of(module: str) -> str:
    """A hash of the source of an imported module, or of all files of a package; empty if it has no source."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if not file:
        return ""
    path = Path(file)
    return _hash_files(tuple(sorted(path.parent.rglob("*"))) if path.name == "__init__.py" else (path,))


@functools.cache
def _hash_files(paths: tuple[Path, ...]) -> str:
    import xxhash

    digest = xxhash.xxh3_128()
    for path in paths:
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
