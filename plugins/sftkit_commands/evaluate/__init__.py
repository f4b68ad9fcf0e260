"""``sftkit evaluate``: how good a model is, on held-out rows or on tasks of lm-eval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from sftkit.api import DataOption, DeviceOption, DTypeOption, JsonOption, PluginOption, RunArgument, TrustOption

if TYPE_CHECKING:
    from sftkit.api import TrainedModel
    from sftkit_commands.evaluate.results import Results

# Optional[...] and not `| None`: Typer reads these on Python 3.10 too.


def evaluate(
    model: RunArgument,
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
            help="Metrics of completions: exact_match, rouge, bleu or module:function; `none` for none. Repeatable.",
        ),
    ] = None,
    rows: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--rows", "-n", metavar="N", min=1, help="Number of rows of each set to complete."),
    ] = None,
    max_new_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--max-new-tokens", metavar="N", min=1, help="Maximum number of tokens of a completion."),
    ] = None,
    batch_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--batch-size", metavar="N", min=1, help="Number of rows in a batch."),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Evaluate the base model of the run too.")] = False,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", metavar="FILE", help="Write the completions to this file, as JSON lines."),
    ] = None,
    tasks: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--tasks", metavar="NAME[,NAME...]", help="Tasks of lm-eval, instead of held-out rows. Repeatable."
        ),
    ] = None,
    include_path: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--include-path", metavar="DIR", help="With --tasks: directory of your own tasks."),
    ] = None,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--limit", metavar="N", min=1, help="With --tasks: number of rows of each task."),
    ] = None,
    fewshot: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--fewshot", metavar="N", min=0, help="With --tasks: number of examples in a prompt."),
    ] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="With --tasks: write prompts as conversations.")
    ] = False,
    dtype: DTypeOption = "",
    device: DeviceOption = "",
    trust_remote_code: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Evaluate a model: its loss, accuracy and completions on held-out rows, or tasks of lm-eval.

    The rows are those that the run held out, prepared as in the run, or other data:

        sftkit evaluate runs/first --base
        sftkit evaluate runs/first -d test.jsonl --metrics rouge -o completions.jsonl
    """
    from sftkit.api import load_trained, printing_json, show_json
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
    with printing_json(json):
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
        show_json(results.as_dict())
    else:
        show(results, output)


def _split(values: list[str]) -> list[str]:
    return [name.strip() for value in values for name in value.split(",") if name.strip()]
