"""The runs in a directory, without reading them."""

from __future__ import annotations

from pathlib import Path

RUNS = "runs"  # where runs are made unless their configuration names another directory
MANIFEST = "manifest.json"
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")


def runs_in(directory: Path) -> list[Path]:
    """The run directories in a directory, the newest first."""
    found = []
    try:
        for path in directory.iterdir():
            manifest = path / MANIFEST
            if manifest.is_file():
                found.append((manifest.stat().st_mtime, path))
    except OSError:  # there is no such directory, or a run is being removed
        pass
    return [path for _, path in sorted(found, reverse=True)]


def has_weights(directory: Path) -> bool:
    """Whether a directory holds the weights of a model or an adapter."""
    return any((directory / file).is_file() for file in WEIGHTS)


def trained_runs(directory: Path) -> list[Path]:
    """The runs in a directory that have saved a model, the newest first."""
    return [path for path in runs_in(directory) if has_weights(path)]
