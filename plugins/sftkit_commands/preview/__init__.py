"""``sftkit preview``: show what the model sees and what it is trained on."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from sftkit.api import ConfigArguments, DataOption, ModelOption, PluginOption, pipeline_from


def preview(
    arguments: ConfigArguments = None,
    plugin: PluginOption = None,
    model: ModelOption = "",
    data: DataOption = "",
    split: Annotated[str, typer.Option("--split", "-s", help="train, or the name of an evaluation set.")] = "train",
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="Number of rows, which form one batch.")] = 3,
    row: Annotated[int, typer.Option("--row", min=1, help="Number of the first row to show.")] = 1,
    ids: Annotated[bool, typer.Option("--ids", help="Show token ids.")] = False,
    html: Annotated[Optional[Path], typer.Option("--html", help="Write an HTML page instead.")] = None,  # noqa: UP045
) -> None:
    """Show what the model sees and what it is trained on, from the batches of the training."""
    if not any(argument.startswith("model.init=") for argument in arguments or []):
        arguments = [*(arguments or []), "model.init=random"]  # a preview works without weights
    pipeline = pipeline_from(arguments, plugin, model, data)

    from sftkit.api import console, note_lines, read_batch
    from sftkit_commands.preview.page import write_html
    from sftkit_commands.preview.text import print_rows

    prepared = pipeline.prepare()
    examples = _examples(prepared.data.splits, split, row - 1, rows)
    shown = read_batch(examples, prepared.collator, prepared.tokenizer, first=row - 1)
    noted = note_lines({split: prepared.data.summary()[split]})
    screen = console()
    if html is None:
        print_rows(screen, shown, ids)
        for line in noted:
            screen.print(f"\n{line}", markup=False)
        return
    write_html(html, shown, f"sftkit preview: {split}", ids, noted)
    screen.print(f"{len(shown)} rows of {split} written to {html}", markup=False)


def _examples(splits: dict[str, Any], split: str, first: int, number: int) -> list[dict[str, Any]]:
    from sftkit.api import ConfigError, Problem, nearest

    if split not in splits:
        known = f"the splits are: {', '.join(splits)}"
        raise ConfigError(Problem(f"there is no split {split!r}", "--split", nearest(split, splits) or known))
    rows = splits[split]
    if not hasattr(rows, "__len__"):
        return list(islice(rows, first, first + number))
    if first >= len(rows):
        what = f"there is no row {first + 1}: {split} has {len(rows)} rows"
        raise ConfigError(Problem(what, "--row", f"use a number from 1 to {len(rows)}"))
    return [rows[index] for index in range(first, min(first + number, len(rows)))]
