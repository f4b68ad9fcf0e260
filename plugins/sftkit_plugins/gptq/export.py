"""Quantizes the trained model in a separate process, after merging its adapter if it has one."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from sftkit.api import Problem, RunError, has_adapter

FOLDER, ROWS, LOG = "gptq", "calibration.json", "quantize.log"
#: Variables by which launchers number their processes; the process that quantizes runs alone.
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def folder(directory: Path) -> Path:
    """The folder of the quantized model."""
    return directory / FOLDER


def export(model: Any, tokenizer: Any, directory: Path, settings: dict[str, Any]) -> None:
    """Write the quantized model into the folder ``gptq`` of the run directory, without changing the trained one.

    Args:
        model: the trained model, with or without an adapter.
        tokenizer: saved with the quantized model.
        directory: the run directory, in which a model without an adapter is already saved.
        settings: the arguments of optimum's quantizer.

    Raises:
        RunError: if quantizing fails.
    """
    target, source = folder(directory), directory
    logger = logging.getLogger("sftkit")
    logger.info("gptq: quantizing to %d bits; progress is logged in %s", settings["bits"], target / LOG)
    try:
        if has_adapter(model):
            source = target / "merged"
            merged(model).save_pretrained(source)
        work("quantize", source, target)
    finally:
        shutil.rmtree(target / "merged", ignore_errors=True)
    tokenizer.save_pretrained(target)
    (target / ROWS).unlink()  # training data must not be published with the model
    logger.info("gptq: the quantized model is in %s", target)


def merged(model: Any) -> Any:
    """A copy of the model on the CPU with its adapter merged into the weights."""
    device = model.device
    model.to("cpu")
    try:
        copied = copy.deepcopy(model)
    finally:
        model.to(device)
    return copied.merge_and_unload()


def work(task: str, source: Path, target: Path) -> str:
    """Run a task in a separate process and return what it prints.

    Importing gptqmodel changes other libraries for the rest of a process.

    Raises:
        RunError: if the task fails.
    """
    command = [sys.executable, "-m", "sftkit_plugins.gptq.worker", task, str(source), str(target / ROWS), str(target)]
    variables = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    variables["PYTHONSAFEPATH"] = "1"  # not from the working directory
    with (target / LOG).open("w", encoding="utf-8") as log:
        done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
    if done.returncode:
        lines = [line for line in (target / LOG).read_text(encoding="utf-8").splitlines() if line.strip()]
        what = f"quantizing failed: {lines[-1].strip() if lines else f'exit code {done.returncode}'}"
        raise RunError(Problem(what, "plugin gptq", f"see {target / LOG}"))
    return done.stdout
