"""The option `processor_options`, held against the processor: what was asked for is there, or it is an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sftkit.api import Problem, nearest

WHERE = "plugin vision, option processor_options"
#: Arguments of ``from_pretrained`` that say how a processor is loaded, and not what it does.
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
    """Options that the processor does not know, or that it has other values of, as one that was given loaded."""
    images = processor.image_processor
    own = {*getattr(getattr(images, "valid_kwargs", None), "__annotations__", ()), *vars(images)}
    for name, value in options.items():
        if name in LOADING:
            continue
        others = [part for part in (processor, processor.tokenizer) if hasattr(part, name)]
        if name not in own and not others:
            known = sorted({*own, *vars(processor)})
            fix = nearest(name, known) or f"the options of its image processor are: {', '.join(sorted(own))}"
            yield Problem(f"{type(processor).__name__} has no option {name!r}", WHERE, fix)
        elif not (_has(images, name, value) if name in own else getattr(others[0], name) == value):
            what = f"the processor is loaded already, and has another {name} than {value!r}"
            yield Problem(what, WHERE, "pass the model's name, or load the processor with these options yourself")


def _has(images: Any, name: str, value: Any) -> bool:
    """Whether loading an image processor with this option would change nothing in it."""
    known = images.to_dict()
    return bool(type(images).from_dict(known, **{name: value}).to_dict() == known)
