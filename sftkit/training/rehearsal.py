"""What transformers, torch and accelerate refuse of the section ``train``, found before data or weights are read.

Each part of the training is made once from the configured values, as the Trainer makes it, for a model of one layer.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sftkit.answers import keep, recall
from sftkit.config.train_fields import CHECKPOINTING_KEYS
from sftkit.errors import Problem
from sftkit.ranks import world_size
from sftkit.training.arguments import argument_values
from sftkit.training.optimizer import optimizer_problems, refused

if TYPE_CHECKING:
    from sftkit.config import RunConfig

REHEARSED = "what libraries refuse of the section train"
#: Reporting integrations whose check or package has another name.
_CHECKED_AS = {"azure_ml": "azureml", "comet_ml": "comet", "flyte": "flytekit"}
_PACKAGES = {"azure_ml": "azureml-core", "comet_ml": "comet-ml", "flyte": "flytekit"}


def rehearse(config: RunConfig, has_eval: bool) -> list[Problem]:
    """The problems that a run would meet when it makes its arguments, optimizer, schedule and loaders.

    Changes nothing: no device, no process group and no environment variable. That there are none is kept for the next
    run with the same values.

    Args:
        config: the run as resolved, without any other problem.
        has_eval: whether there is evaluation data.
    """
    parts = {
        "train": {name: value for name, value in config.train.items() if name != "output_dir"},
        "evaluate": config.evaluate.model_dump(mode="json"),
        "timeout": config.run.timeout,
        "has_eval": has_eval,
    }
    # A token of the hub, a file, and the other processes of a run may change at any time.
    kept = world_size() == 1 and not config.train.get("push_to_hub") and not _names_file(config)
    if kept and recall(REHEARSED, parts) == []:
        return []
    problems = _rehearsed(config, has_eval)
    if kept and not problems:
        keep(REHEARSED, parts, [])
    return problems


def _names_file(config: RunConfig) -> bool:
    """Whether a value is the path of a file, which is read."""
    values = (value for key, value in config.train.items() if key != "output_dir")
    return any(isinstance(value, str) and os.path.exists(value) for value in values)


def _rehearsed(config: RunConfig, has_eval: bool) -> list[Problem]:
    from transformers.utils import logging

    level = logging.get_verbosity()
    with warnings.catch_warnings(), _same_environment():
        warnings.simplefilter("ignore")
        logging.set_verbosity_error()
        try:
            return _problems(config, has_eval)
        finally:
            logging.set_verbosity(level)


def _problems(config: RunConfig, has_eval: bool) -> list[Problem]:
    problems = [*_reports(config), *_backend(config), *_checkpointing(config), *_hub(config)]
    problems += _compiling(config)
    arguments, wrong = _arguments(config, has_eval)
    problems += wrong
    if arguments is not None:
        problems += [*optimizer_problems(arguments, _on_cpu(config)), *_loaders(arguments), *_accelerator(arguments)]
    return list({problem.key: problem for problem in reversed(problems)}.values())[::-1]


def rehearsed_arguments(config: RunConfig, has_eval: bool) -> Any:
    """The `TrainingArguments` of a run, made without setting up a device; for a configuration that has been checked."""
    with _same_environment():
        return _arguments(config, has_eval)[0]


@contextmanager
def _same_environment() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _arguments(config: RunConfig, has_eval: bool) -> tuple[Any, list[Problem]]:
    """`TrainingArguments` that set up no device, and the problem if transformers refuses them."""
    import torch
    from transformers import TrainingArguments

    class Rehearsed(TrainingArguments):
        _setup_devices: Any = torch.device("cpu")
        distributed_state: Any = None
        _n_gpu = 1

    values = argument_values(config, has_eval)
    # These act on the process, or read their file, when they are set; they have checks of their own.
    for key in ("torch_compile", "torch_compile_backend", "torch_compile_mode", "tf32"):
        values.pop(key, None)

    def refusal(without: str = "") -> Exception | None:
        try:
            Rehearsed(**{key: value for key, value in values.items() if key != without})
        except Exception as error:  # whatever it raises, it is about these values
            return error
        return None

    if (error := refusal()) is None:
        return Rehearsed(**values), []
    # the configured field without which another error is raised, or none
    guilty = [key for key in config.train if str(refusal(without=key)) != str(error)]
    named = [key for key in guilty if key in str(error)]
    key = next(iter([*named, *guilty, *config.train]), "output_dir")
    return None, [refused(key, error)]


def _reports(config: RunConfig) -> Iterator[Problem]:
    from transformers.integrations import integration_utils as known

    reports = config.train.get("report_to", "none")
    names = reports if isinstance(reports, list) else [reports]
    where: Any = {"where": "train.report_to", "key": ("train", "report_to")}
    for name in names if names not in (["none"], ["all"]) else ():
        if name not in known.INTEGRATION_TO_CALLBACK:
            fix = f"use none, or some of: {', '.join(known.INTEGRATION_TO_CALLBACK)}"
            yield Problem(f"there is no integration {name!r}", fix=fix, **where)
        elif not getattr(known, f"is_{_CHECKED_AS.get(name, name)}_available")():
            package = _PACKAGES.get(name, name)
            fix = f"pip install {package}, or set train.report_to=none"
            yield Problem(f"{name} needs the package {package}, which is not installed", fix=fix, **where)


def _backend(config: RunConfig) -> Iterator[Problem]:
    if config.train.get("ddp_backend") == "nccl" and _on_cpu(config):
        yield Problem("nccl needs GPUs", "train.ddp_backend", "use gloo, or remove it", ("train", "ddp_backend"))


def _checkpointing(config: RunConfig) -> Iterator[Problem]:
    """Options of activation checkpointing that neither torch nor transformers takes."""
    import torch.utils.checkpoint
    from transformers import PreTrainedModel

    for key in CHECKPOINTING_KEYS:
        options = config.train.get(f"{key}_kwargs")
        if not options:
            continue
        enable = getattr(PreTrainedModel, f"{key}_enable")
        known = [
            *inspect.signature(torch.utils.checkpoint.checkpoint).parameters,
            "use_reentrant",
            *inspect.signature(enable).parameters,
        ]
        for name in options:
            if name not in known or name in ("self", "function", "args", "kwargs"):
                name_key = f"{key}_kwargs"
                what, fix = f"activation checkpointing has no option {name!r}", "remove it, or use use_reentrant"
                yield Problem(what, f"train.{name_key}", fix, ("train", name_key))


def _on_cpu(config: RunConfig) -> bool:
    import torch

    return bool(config.train.get("use_cpu")) or torch.accelerator.current_accelerator() is None


def _hub(config: RunConfig) -> Iterator[Problem]:
    from huggingface_hub import constants, get_token

    if not config.train.get("push_to_hub"):
        return
    where: Any = {"where": "train.push_to_hub", "key": ("train", "push_to_hub")}
    if constants.HF_HUB_OFFLINE:
        yield Problem("HF_HUB_OFFLINE is set", fix="unset it, or remove train.push_to_hub", **where)
    elif get_token() is None:
        yield Problem("there is no token for the hub", fix="run `hf auth login`, or set HF_TOKEN", **where)


def _loaders(arguments: Any) -> Iterator[Problem]:
    """Data loaders, with the processes they would start."""
    from torch.utils.data import DataLoader

    names = ("num_workers", "persistent_workers", "prefetch_factor", "multiprocessing_context")
    options: dict[str, Any] = {name: getattr(arguments, f"dataloader_{name}", None) for name in names}
    try:
        DataLoader([0], **options)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        key = next((name for name in reversed(names) if options[name]), names[0])
        yield refused(f"dataloader_{key}", error, "set train.dataloader_num_workers, or remove it")


def _accelerator(arguments: Any) -> Iterator[Problem]:
    """What accelerate takes from ``accelerator_config`` and ``torch_compile_*``."""
    from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin

    from sftkit.training.loaders import loader_problems

    settings = arguments.accelerator_config
    key, fix = "accelerator_config", "correct train.accelerator_config"
    accumulation = dict(settings.gradient_accumulation_kwargs or {})
    if settings.use_configured_state:
        yield Problem("use_configured_state needs a state that no run has", f"train.{key}", "remove it", ("train", key))
    if "num_steps" in accumulation:
        what = "num_steps would change the number of batches in a step"
        yield Problem(what, f"train.{key}", "set train.gradient_accumulation_steps", ("train", key))
        return
    yield from loader_problems(settings)
    try:
        GradientAccumulationPlugin(num_steps=1, **accumulation)
        DataLoaderConfiguration(non_blocking=settings.non_blocking)
    except Exception as error:  # whatever accelerate raises, it is about these values
        yield refused(key, error, fix)


def _compiling(config: RunConfig) -> Iterator[Problem]:
    """Back end and mode of torch.compile, which compiles at the first call only."""
    import torch
    from accelerate.utils import DynamoBackend, TorchDynamoPlugin

    options = {name: config.train.get(f"torch_compile_{name}") for name in ("backend", "mode")}
    given = {name: value for name, value in options.items() if value is not None}
    if not given:
        return
    try:
        TorchDynamoPlugin(**given)
        torch.compile(torch.nn.Identity(), **given)
    except Exception as error:  # whatever torch or accelerate raises, it is about these values
        key = "torch_compile_backend" if "backend" in given and "mode" not in str(error) else "torch_compile_mode"
        fix = (
            f"use one of: {', '.join(name.lower() for name in DynamoBackend.list())}" if key.endswith("backend") else ""
        )
        yield refused(key, error, fix)
