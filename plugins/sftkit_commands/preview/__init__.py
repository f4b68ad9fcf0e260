"""``sftkit preview``: what the model sees and what it is trained on."""

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
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="Number of rows; they form one batch.")] = 3,
    row: Annotated[int, typer.Option("--row", min=1, help="Number of the first row to show.")] = 1,
    ids: Annotated[bool, typer.Option("--ids", help="Show token ids.")] = False,
    html: Annotated[Optional[Path], typer.Option("--html", help="Write an HTML page instead.")] = None,  # noqa: UP045
) -> None:
    """Show what the model sees and what it is trained on, from the batches that training would get."""
    if not any(argument.startswith("model.init=") for argument in arguments or []):
        arguments = [*(arguments or []), "model.init=random"]  # no weights are read, so none need to be there
    pipeline = pipeline_from(arguments, plugin, model, data)

    from sftkit.api import console
    from sftkit_commands.preview.page import LEGEND, MARKS, STYLES, WEIGHT_MEANING, as_text, read_batch, write_html

    prepared = pipeline.prepare()
    examples = _examples(prepared.data.splits, split, row - 1, rows)
    shown = read_batch(examples, prepared.collator, prepared.tokenizer, first=row - 1)
    screen = console()
    if html is not None:
        write_html(html, shown, f"sftkit preview: {split}", ids)
        screen.print(f"{len(shown)} rows of {split} written to {html}", markup=False)
        return
    colour = screen.is_terminal and not screen.no_color
    for kind, meaning in LEGEND.items():
        if kind != "other" or any(part.count("other") for part in shown):
            before, after = MARKS[kind]
            screen.print(
                kind if colour else f"{before}{kind}{after}", style=STYLES[kind] if colour else "", markup=False, end=""
            )
            screen.print(f"  {meaning}", markup=False)
    if any(piece.weight != 1 for part in shown for piece in part.pieces):
        screen.print(f"×0.5  {WEIGHT_MEANING}", markup=False)
    for part in shown:
        screen.print(f"\n── {part.title}", style="bold", markup=False)
        screen.print(as_text(part, ids, colour))


def _examples(splits: dict[str, Any], split: str, first: int, number: int) -> list[dict[str, Any]]:
    from sftkit.api import ConfigError, Problem, nearest

    if split not in splits:
        known = f"the splits are: {', '.join(splits)}"
        raise ConfigError(Problem(f"there is no split {split!r}", "--split", nearest(split, splits) or known))
    rows = splits[split]
    if not hasattr(rows, "__len__"):
        return list(islice(rows, first, first + number))
    if first >= len(rows):
        raise ConfigError(Problem(f"{split} has {len(rows)} rows", "--row", "give the number of one of them"))
    return [rows[index] for index in range(first, min(first + number, len(rows)))]
