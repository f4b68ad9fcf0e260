"""`transformers.AutoTokenizer`, whose choice of a class is kept: it reads the model's configuration with torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sftkit.answers import Warnings, keep, recall

CLASS = "the class of a tokenizer"


def load_auto_tokenizer(name: str, revision: str | None) -> Any:
    """The tokenizer that `transformers.AutoTokenizer` loads.

    If it has loaded a tokenizer of the same files before, the class that it chose does it. For a name on the hub, whose
    files may change, and for files of which it warned, it is asked each time.

    Args:
        name: directory or hub name.
        revision: of the hub.
    """
    import transformers

    directory = Path(name)
    parts = {"files": _files(directory)} if directory.is_dir() else {}
    if parts and (known := recall(CLASS, parts)) is not None:
        return getattr(transformers, known).from_pretrained(name, revision=revision)
    with Warnings("transformers") as warned:
        loaded = transformers.AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    chosen = type(loaded).__name__
    if parts and not warned.any and getattr(transformers, chosen, None) is type(loaded):
        keep(CLASS, parts, chosen)
    return loaded


def _files(directory: Path) -> dict[str, str]:
    """The names of the files, and the contents of those that the class is chosen by."""
    chosen_by = ("config.json", "tokenizer_config.json")
    return {
        path.name: path.read_text(encoding="utf-8", errors="replace") if path.name in chosen_by else ""
        for path in sorted(directory.iterdir())
    } | {"directory": directory.name.lower()}  # a few models are known by their names
