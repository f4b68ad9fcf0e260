"""The sections of the report, each by a function that examines one subject."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from sftkit.api import free_bytes, has_gpu, size_text
from sftkit_commands.doctor.findings import Finding, Section, reason
from sftkit_commands.doctor.packages import combinations, plugins, versions

#: Variables that change what a run does. Their values are shown, so none may be a secret.
VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "WORLD_SIZE")
HUB = "https://huggingface.co"
SECONDS = 5.0  # to wait for the hub


def examine(network: bool = False) -> list[Section]:
    """Every section. What libraries print meanwhile is dropped.

    Args:
        network: whether to try to reach the hub.
    """
    needed = combinations()
    if needed.broken:  # then importing torch may fail too
        return [Section("System", list(_system())), versions(), needed]
    with _silence():
        from sftkit_commands.doctor.attention import attention
        from sftkit_commands.doctor.devices import devices, distributed, precisions

        sections = [
            Section("System", list(_system())),
            Section("Devices", list(devices())),
            versions(),
            needed,
            plugins(),
            Section("Attention", list(attention())),
            Section("Precision", list(precisions())),
            Section("Several processes", list(distributed())),
            Section("Directories", list(_directories())),
        ]
        return [*sections, Section("Network", list(_network()))] if network else sections


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _system() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    yield Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    yield Finding("Python", f"{platform.python_version()}, {sys.executable}")
    yield Finding("CPU", f"{os.cpu_count()} threads, {_usable()} of them for this process")
    yield Finding("memory", f"{size_text(memory.total)}, {size_text(memory.available)} available")
    for name in VARIABLES:
        if name in os.environ:
            yield Finding(name, os.environ[name] or "(empty)")


def _usable() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _directories() -> Iterator[Finding]:
    from huggingface_hub import constants

    from sftkit.api import cache_directory

    places = {"working directory": Path.cwd(), "prepared data": cache_directory(), "hub": Path(constants.HF_HUB_CACHE)}
    for name, path in places.items():
        there = next(each for each in (path, *path.absolute().parents) if each.exists())
        free = f"{path}, {size_text(free_bytes(there))} free"
        if os.access(there, os.W_OK | os.X_OK):
            yield Finding(name, free, "ok")
        else:
            fix = {"prepared data": "set SFTKIT_CACHE", "hub": "set HF_HOME"}.get(name, "change the directory")
            yield Finding(name, f"{path} cannot be written", "no", f"{fix} to one that can be written")


def _network() -> Iterator[Finding]:
    import urllib.request

    from huggingface_hub import constants, get_token

    address = os.environ.get("HF_ENDPOINT", HUB)
    if constants.HF_HUB_OFFLINE:
        yield Finding("hub", "switched off by HF_HUB_OFFLINE", "no", "unset HF_HUB_OFFLINE")
    else:
        try:
            with urllib.request.urlopen(address, timeout=SECONDS):
                yield Finding("hub", f"{address} can be reached", "ok")
        except OSError as error:
            fix = "check the proxy (HTTPS_PROXY), or set HF_HUB_OFFLINE=1 to use what is on the disk"
            yield Finding("hub", f"{address} cannot be reached: {reason(error)}", "no", fix)
    yield Finding("hub token", "set" if get_token() else "not set")


def without_gpu() -> str:
    """Why torch finds no accelerator; empty if the machine has none."""
    import torch

    if not has_gpu():
        return ""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"a GPU is there, but torch {torch.__version__} is built for the CPU"
    return f"a GPU is there, but torch {torch.__version__} cannot use it"
