"""Imports what the settings use, so that a process that is forked from this one starts at once.

Nothing here may start CUDA, since a fork cannot use it then. bitsandbytes does so when it is imported, as peft and
transformers do where it is installed: it is hidden, and no setting uses it.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import time

#: Heaviest first. Of transformers, what is loaded lazily.
MODULES = (
    "torch",
    "torch._dynamo",
    "transformers",
    "transformers.trainer",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen3.modeling_qwen3",
    "datasets",
    "peft",
    "trl.trainer.sft_trainer",
    "sftkit.pipeline",
    "sftkit.stages",
    "sftkit.training.trainer",
    "sftkit.memory",
)
PROBLEMS: list[str] = []
SECONDS = 0.0


def preload() -> None:
    """Import the modules; those that fail are left to the settings that use them."""
    global SECONDS
    started = time.perf_counter()
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # looks for a GPU without starting CUDA
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
    gc.disable()
    for name in MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:  # a package may raise anything while it is imported
            PROBLEMS.append(f"{name}: {type(error).__name__}: {error}")
    SECONDS = time.perf_counter() - started
    gc.freeze()  # a fork neither searches what was imported for garbage, nor copies it
    gc.enable()


preload()
