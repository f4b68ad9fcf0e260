"""Checks the option `processor_options` against the processor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sftkit.api import Problem, nearest

WHERE = "plugin vision, option processor_options"
#: Arguments of ``from_pretrained`` that say how a processor is loaded, not what it does.
LOADING = {
    "backend",
    "cache_dir",
    "code_revision",
    "force_download",
    "local_files_only",
    "subfolder",
    "token",
    "use_fast",
}


def option_problems(options: Mapping[str, Any], processor: Any) -> Iterator[Problem]:
    """Options that the processor does not have, or has with other values because it was loaded before the run."""
    images = processor.image_processor
    own = {*getattr(getattr(images, "valid_kwargs", None), "__annotations__", ()), *vars(images)}
    for name, value in options.items():
        if name in LOADING:
            continue
        others = [part for part in (processor, processor.tokenizer) if hasattr(part, name)]
        if name not in own and not others:
            known = sorted({*own, *vars(processor)})
            fix = nearest(name, known) or f"use one of {', '.join(sorted(own))}"
            yield Problem(f"{type(processor).__name__} has no option {name!r}", WHERE, fix)
        elif not (_has(images, name, value) if name in own else getattr(others[0], name) == value):
            what = f"the processor is already loaded with another {name} than {value!r}"
            yield Problem(what, WHERE, "pass the model's name, or load the processor with these options yourself")


def _has(images: Any, name: str, value: Any) -> bool:
    """Whether an image processor loaded with this option would be the same."""
    known = images.to_dict()
    return bool(type(images).from_dict(known, **{name: value}).to_dict() == known)
