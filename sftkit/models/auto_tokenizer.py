"""`transformers.AutoTokenizer`, whose choice of a class is kept: it reads the model's configuration with torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sftkit.answers import Warnings, keep, on_disk, recall

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
    # Some classes are chosen by the path, and some by what is in the tokenizer's own files.
    files = sorted(each for each in directory.iterdir() if each.is_file()) if directory.is_dir() else []
    parts = {"name": name, "files": [*map(on_disk, files)]} if files else {}
    if parts and (known := recall(CLASS, parts)) is not None:
        return getattr(transformers, known).from_pretrained(name, revision=revision)
    with Warnings("transformers") as warned:
        loaded = transformers.AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    chosen = type(loaded).__name__
    if parts and not warned.any and getattr(transformers, chosen, None) is type(loaded):
        keep(CLASS, parts, chosen)
    return loaded
