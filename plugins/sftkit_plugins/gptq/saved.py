"""Quantizes a model that is saved, for ``sftkit export --quantize gptq``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.api import ConfigError, Problem
from sftkit_plugins.gptq.export import LOG, ROWS, work

if TYPE_CHECKING:
    from torch import Tensor

LOGITS = "logits.safetensors"


def quantize_saved(
    source: Path,
    target: Path,
    rows: Sequence[Sequence[int]],
    probes: Sequence[Sequence[int]],
    settings: dict[str, Any],
) -> list[Tensor]:
    """Quantize a saved model, and return what the quantized one predicts.

    Args:
        source: the directory of the model.
        target: an empty directory for the quantized one.
        rows: token ids to calibrate on.
        probes: token ids to predict on.
        settings: the arguments of optimum's quantizer.

    Raises:
        ConfigError: if the model cannot be quantized.
        RunError: if quantizing fails.
    """
    from safetensors.torch import load_file

    task = {"settings": settings, "trust_remote_code": False, "rows": rows, "probes": probes}
    (target / ROWS).write_text(json.dumps(task), encoding="utf-8")
    found = work("check", source, target)
    if problems := [Problem(item["what"], "plugin gptq", item["fix"]) for item in json.loads(found.splitlines()[-1])]:
        raise ConfigError(problems)
    work("quantize", source, target)
    work("predict", target, target)
    logits = load_file(target / LOGITS)
    for name in (ROWS, LOG, LOGITS):  # training data must not be published with the model
        (target / name).unlink()
    return [logits[str(at)] for at in range(len(probes))]


def documents_for(rows: Sequence[Sequence[int]], number: int, longest: int) -> list[list[int]]:
    """The documents to calibrate on.

    Raises:
        ConfigError: if there are fewer than ``number``.
    """
    if len(rows) < number:
        what = f"the data has {len(rows)} documents, but calibration needs {number}"
        raise ConfigError(Problem(what, "plugin gptq, option rows", f"set rows to at most {len(rows)}"))
    return [list(row[:longest]) for row in rows[:number]]
