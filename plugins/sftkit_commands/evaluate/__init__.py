"""``sftkit evaluate``: how good a model is, on held-out rows or on tasks of lm-eval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from sftkit.api import DataOption, PluginOption

if TYPE_CHECKING:
    from sftkit.api import TrainedModel
    from sftkit_commands.evaluate.results import Results

# Optional[...] and not `| None`: Typer reads these on Python 3.10 too.


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="RUN", help="A run, a checkpoint, or a directory or hub name of any model.")
    ],
    assignments: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="[KEY=VALUE]...", help="Values that override the configuration of the run."),
    ] = None,
    data: DataOption = "",
    plugin: PluginOption = None,
    metrics: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--metrics",
            metavar="NAME[,NAME...]",
            help="Metrics of completions: exact_match, rouge, bleu, or module:function. Repeatable. `none` for none.",
        ),
    ] = None,
    rows: Annotated[Optional[int], typer.Option("--rows", min=1, help="Rows of each set to complete.")] = None,  # noqa: UP045
    max_new_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--max-new-tokens", min=1, help="Maximum number of tokens of a completion."),
    ] = None,
    batch_size: Annotated[Optional[int], typer.Option("--batch-size", min=1, help="Rows of a batch.")] = None,  # noqa: UP045
    base: Annotated[bool, typer.Option("--base", help="Evaluate the base model of the run too.")] = False,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", help="Write the completions to this file, as JSON lines."),
    ] = None,
    tasks: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--tasks", metavar="NAME[,NAME...]", help="Tasks of lm-eval, instead of held-out rows."),
    ] = None,
    include_path: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--include-path", help="--tasks: a directory with tasks of your own."),
    ] = None,
    limit: Annotated[Optional[int], typer.Option("--limit", min=1, help="--tasks: rows of each task.")] = None,  # noqa: UP045
    fewshot: Annotated[Optional[int], typer.Option("--fewshot", min=0, help="--tasks: examples in a prompt.")] = None,  # noqa: UP045
    chat_template: Annotated[bool, typer.Option("--chat-template", help="--tasks: prompts as conversations.")] = False,
    dtype: Annotated[str, typer.Option("--dtype", help="dtype of the weights; default: that of the run.")] = "",
    device: Annotated[str, typer.Option("--device", help="Such as cpu or cuda:1; default: the first GPU.")] = "",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Allow running Python code that comes with the model.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Evaluate a model: loss, accuracy and metrics of its completions, or tasks of lm-eval."""
    from sftkit.api import load_trained
    from sftkit_commands.evaluate.results import by_tasks, on_rows, refuse_unused, show

    rows_options = {
        "--data": data, "--metrics": metrics, "--rows": rows, "--max-new-tokens": max_new_tokens, "--output": output,
        "KEY=VALUE": assignments, "--plugin": plugin,
    }  # fmt: skip
    task_options = {
        "--include-path": include_path, "--limit": limit, "--fewshot": fewshot, "--chat-template": chat_template,
    }  # fmt: skip
    refuse_unused(bool(tasks), rows_options, task_options)

    def load(name: str, **options: Any) -> TrainedModel:
        known = {"dtype": dtype or None, "device": device or None, "trust_remote_code": trust_remote_code}
        return load_trained(name, **known | options)

    results: Results
    if tasks:
        from sftkit_commands.evaluate.tasks import Tasks

        found = Tasks.find(_split(tasks), include_path, limit, fewshot, chat_template, batch_size or 1)
        results = by_tasks(load, load(model), found, base)
    else:
        settings = {"rows": rows, "max_new_tokens": max_new_tokens}
        chosen: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
        if metrics:
            chosen["metrics"] = [] if metrics == ["none"] else _split(metrics)
        extra = [*(assignments or []), *([f"train.per_device_eval_batch_size={batch_size}"] if batch_size else [])]
        results = on_rows(load, load(model), data or None, chosen, extra, plugin or [], base)
    if output is not None:
        results.write_completions(output)
    if json:
        import json as library

        typer.echo(library.dumps(results.as_dict()))
    else:
        show(results, output)


def _split(values: list[str]) -> list[str]:
    return [name.strip() for value in values for name in value.split(",") if name.strip()]
