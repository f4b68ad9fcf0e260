"""The trained model, merged where it has an adapter, handed to a process of its own that quantizes it."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from sftkit.api import Problem, RunError

FOLDER, ROWS, LOG = "gptq", "calibration.json", "quantize.log"
#: What launchers tell their processes: the one that quantizes is alone.
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def folder(directory: Path) -> Path:
    """Where the quantized model goes."""
    return directory / FOLDER


def export(model: Any, tokenizer: Any, directory: Path, settings: dict[str, Any]) -> None:
    """Quantize the trained model into the folder ``gptq`` of the run directory; the model stays as it is.

    Args:
        model: the trained model, bare or with an adapter.
        tokenizer: saved beside the quantized model.
        directory: the run directory; a model without an adapter is saved there already.
        settings: the arguments of optimum's quantizer.

    Raises:
        RunError: if quantizing fails.
    """
    target, source = folder(directory), directory
    logger = logging.getLogger("sftkit")
    logger.info("gptq: quantizing to %d bits; %s tells how far it is", settings["bits"], target / LOG)
    try:
        if hasattr(model, "peft_config"):
            source = target / "merged"
            merged(model).save_pretrained(source)
        work("quantize", source, target)
    finally:
        shutil.rmtree(target / "merged", ignore_errors=True)
    tokenizer.save_pretrained(target)
    (target / ROWS).unlink()  # rows of the training data are no part of a model
    logger.info("gptq: the quantized model is in %s", target)


def merged(model: Any) -> Any:
    """A copy of the model on the CPU, with its adapter merged into the weights."""
    device = model.device
    model.to("cpu")
    try:
        copied = copy.deepcopy(model)
    finally:
        model.to(device)
    return copied.merge_and_unload()


def work(task: str, source: Path, target: Path) -> str:
    """Let a process of its own do it, and give what it prints: importing gptqmodel changes other libraries for good.

    Raises:
        RunError: if it fails.
    """
    command = [sys.executable, "-m", "sftkit_plugins.gptq.worker", task, str(source), str(target / ROWS), str(target)]
    alone = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    with (target / LOG).open("w", encoding="utf-8") as log:
        done = subprocess.run(command, env=alone, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
    if done.returncode:
        lines = [line for line in (target / LOG).read_text(encoding="utf-8").splitlines() if line.strip()]
        what = f"the model cannot be quantized: {lines[-1].strip() if lines else f'exit code {done.returncode}'}"
        raise RunError(Problem(what, "plugin gptq", f"see {target / LOG}"))
    return done.stdout
