"""Loading a checkpoint: weights that are saved under other names, and states that are pickled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers.trainer_pt_utils import safe_globals

from sftkit.errors import Problem, RunError
from sftkit.training.attributes import replaced


@contextmanager
def loading_all_weights(trainer: Any, checkpoint: Any) -> Iterator[None]:
    """The Trainer loads a checkpoint inside; weights that it has missed are loaded after it.

    The Trainer matches names literally. Some models, such as those with experts, are saved under other names, which
    only ``from_pretrained`` translates.

    Raises:
        RunError: if the checkpoint lacks weights.
    """
    results: list[Any] = []
    with replaced(trainer, "_issue_warnings_after_load", results.append):
        yield
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not any(result.unexpected_keys or untied(model, result.missing_keys) for result in results):
        return
    saved, info = type(model).from_pretrained(
        checkpoint, dtype="auto", attn_implementation="eager", use_safetensors=True, output_loading_info=True
    )
    if missing := sorted({*info["missing_keys"], *map(str, info["mismatched_keys"])}):
        what = f"the checkpoint lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}"
        raise RunError(Problem(what, str(checkpoint), "resume from another checkpoint, or start again"))
    model.load_state_dict(saved.state_dict())


@contextmanager
def refusing_pickles(checkpoint: str | None) -> Iterator[None]:
    """The Trainer loads states inside with ``weights_only``: pickles with anything but tensors and plain values fail.

    Raises:
        RunError: if a file contains anything else; nothing of it was executed.
    """
    try:
        yield
    except UnpicklingError as error:
        where = next((path for path in sorted(Path(checkpoint or "").glob("*.pt*")) if not _plain(path)), checkpoint)
        what = "the file contains pickled objects other than tensors and plain values, and is not loaded"
        fix = "do not use this checkpoint; delete it, and resume from an older one"
        raise RunError(Problem(what, str(where), fix)) from error


def _plain(path: Path) -> bool:
    try:
        with safe_globals():
            torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        return False
    return True


def untied(model: Any, names: list[str]) -> list[str]:
    """The names whose weight has no other name."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    others = {id(weight) for name, weight in weights.items() if name not in names}
    return [name for name in names if id(weights.get(name)) not in others]
