"""The questions of `sftkit init`, and the configuration that the answers make."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

MODEL = "Qwen/Qwen3-0.6B"
LISTED = 5  # data files
METHODS = ("full", "lora", "qlora")
_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Answers:
    """What the options or the user said; None where nothing was said yet."""

    model: str | None = None
    data: str | None = None
    method: str | None = None
    memory: float | None = None
    eval: float | None = None
    output: str | None = None


def check(answers: Answers) -> None:
    """Raises:
    ConfigError: for options out of range.
    """
    from sftkit.api import ConfigError, Problem, nearest

    problems = []
    if answers.method is not None and answers.method not in METHODS:
        fix = nearest(answers.method, METHODS) or f"use {', '.join(METHODS)}"
        problems.append(Problem(f"there is no method {answers.method!r}", "--method", fix))
    if answers.memory is not None and answers.memory < 0:
        problems.append(Problem("a GPU cannot have less than 0 GB", "--memory", "give the memory in GB, or 0 for none"))
    if answers.eval is not None and not 0 <= answers.eval < 1:
        problems.append(Problem(f"{answers.eval} is out of range", "--eval", "give a fraction such as 0.05, or 0"))
    if problems:
        raise ConfigError(problems)


def data_file() -> str | None:
    """The only file in the working directory that looks like data, by its suffix."""
    found = _data_files()
    return found[0] if len(found) == 1 else None


def _data_files() -> list[str]:
    found = sorted(path.name for path in Path.cwd().iterdir() if path.suffix in _SUFFIXES and path.is_file())
    return [name for name in found if name not in ("dataset_info.json", "package.json")]


def ask(answers: Answers, look: Callable[[str, str], None]) -> Answers:
    """Ask for what was not said; Enter accepts the default.

    Args:
        answers: of the options.
        look: shows what the data is, after the first two questions.
    """
    from sftkit_commands.init.look import billions, gpu_memory, method_for

    model = answers.model or _prompt("Model (directory or hub name)", MODEL)
    data = answers.data or _ask_for_data()
    look(model, data)
    memory = answers.memory
    if memory is None:
        memory = float(_prompt("GPU memory in GB, 0 without one", f"{gpu_memory():g}", _memory))
    weights = billions(model)
    method = answers.method
    if method is None:
        method = str(_prompt(f"Train: {', '.join(METHODS)}", method_for(weights, memory), _method))
    share = answers.eval
    if share is None:
        share = float(_prompt("Share held out for evaluation", "0.05", _share))
    output = answers.output or _prompt("Run directory", "runs/sft")
    return Answers(model, data, method, memory, share, output)


def assume(answers: Answers) -> Answers:
    """Take the default for what was not said.

    Raises:
        ConfigError: if the data was not said and is not clear.
    """
    from sftkit.api import ConfigError, Problem
    from sftkit_commands.init.look import billions, gpu_memory, method_for

    data = answers.data or data_file()
    if data is None:
        raise ConfigError(Problem("it is not clear what to train on", "sftkit init --yes", "add --data FILE"))
    model = answers.model or MODEL
    memory = gpu_memory() if answers.memory is None else answers.memory
    method = answers.method or method_for(billions(model), memory)
    share = 0.05 if answers.eval is None else answers.eval
    return Answers(model, data, method, memory, share, answers.output or "runs/sft")


def require_terminal() -> None:
    """Raises:
    ConfigError: if there is nobody to ask.
    """
    from sftkit.api import ConfigError, Problem

    if not sys.stdin.isatty():
        fix = "add --yes, and --model, --data, --method, --memory, --eval or --output where its default is not right"
        raise ConfigError(Problem("there is no terminal to ask questions in", "sftkit init", fix))


def _ask_for_data() -> str:
    """The answer to the question for the data, after a list of the files that it may be."""
    if len(found := _data_files()) > 1:
        more = f" and {len(found) - LISTED:,} more" if len(found) > LISTED else ""
        typer.echo(f"  data files here: {', '.join(found[:LISTED])}{more}")
    return str(_prompt("Data (file or hub name)", data_file(), _data))


def _prompt(text: str, default: str | None, check: Callable[[str], Any] | None = None) -> Any:
    """An answer; the question is repeated, with the reason, if ``check`` refuses it."""
    return typer.prompt(text, default=default, value_proc=check)


def _data(text: str) -> str:
    from sftkit.api import nearest

    path = Path(text)
    if path.suffix in _SUFFIXES and "*" not in text and "://" not in text and not path.exists():
        near = nearest(path.name, [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else [])
        raise typer.BadParameter(f"there is no file {text!r}{f'; {near}' if near else ''}")
    return text


def _memory(text: str) -> float:
    if (value := _number(text)) is None or value < 0:
        raise typer.BadParameter(f"{text!r} is not a number of GB; give one such as 24, or 0 for none")
    return value


def _method(text: str) -> str:
    from sftkit.api import nearest

    if text.lower() not in METHODS:
        raise typer.BadParameter(f"there is no method {text!r}; {nearest(text, METHODS) or 'use one of these three'}")
    return text.lower()


def _share(text: str) -> float:
    if (value := _number(text)) is None or not 0 <= value < 1:
        raise typer.BadParameter(f"{text!r} is not a share of the rows; give a fraction such as 0.05, or 0 for none")
    return value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def configuration(answers: Answers, template: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration that the answers make, and the comments of its keys.

    Args:
        answers: complete ones.
        template: whether the tokenizer needs a chat template.
    """
    adapter, gpu = answers.method != "full", bool(answers.memory)
    model: dict[str, Any] = {"name": answers.model}
    if adapter and gpu:
        model["dtype"] = "bfloat16"
    data: dict[str, Any] = {"train": answers.data}
    if answers.eval:
        data["eval"] = answers.eval
    data["max_length"] = 1024
    train: dict[str, Any] = {
        "learning_rate": 2e-4 if adapter else 2e-5,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
    }
    train |= {"bf16": True} if gpu else {}
    train |= {"eval_strategy": "epoch"} if answers.eval else {}
    train["output_dir"] = answers.output
    plugins: dict[str, Any] = {"chatml": {}} if template else {}
    plugins |= {"bitsandbytes": {"bits": 4}} if answers.method == "qlora" else {}
    plugins |= {"peft": {"r": 16}} if adapter else {}
    plugins |= {"activations": {}} if gpu else {}
    return {"model": model, "data": data, "train": train, "plugins": plugins}, COMMENTS


COMMENTS = {
    "data.eval": "this share of the rows is held out",
    "data.max_length": "tokens; longer rows lose their end, and are counted",
    "train.learning_rate": "2e-5 is usual for all weights, 2e-4 for an adapter",
    "train.gradient_accumulation_steps": "a step has 4 x 4 rows",
    "train.warmup_steps": "a fraction of all steps",
    "plugins.chatml": "the tokenizer has no chat template",
    "plugins.bitsandbytes": "the base model in 4 bits",
    "plugins.peft": "an adapter; the base model is not changed",
    "plugins.activations": "saves memory where it does not fit otherwise",
}
