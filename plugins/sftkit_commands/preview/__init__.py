"""``sftkit preview``: what the model sees and what it is trained on."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from sftkit.cli.run import gather, set_up


def preview(
    arguments: Annotated[
        Optional[list[str]],  # noqa: UP045 (typer reads this on Python 3.10 too)
        typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="As for run."),
    ] = None,
    plugin: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--plugin", "-p", metavar="NAME[:OPT=VALUE,...]", help="As for run."),
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Directory or hub name; no weights are read.")] = "",
    data: Annotated[str, typer.Option("--data", "-d", help="File, glob, directory or hub name of the data.")] = "",
    split: Annotated[str, typer.Option("--split", "-s", help="train, or the name of an evaluation set.")] = "train",
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="How many rows; they are one batch.")] = 3,
    row: Annotated[int, typer.Option("--row", min=1, help="The first of them.")] = 1,
    ids: Annotated[bool, typer.Option("--ids", help="Show token ids.")] = False,
    html: Annotated[Optional[Path], typer.Option("--html", help="Write a page instead.")] = None,  # noqa: UP045
) -> None:
    """Show what the model sees and what it is trained on, from the batches that training would get."""
    set_up()
    arguments = arguments or []
    if not any(argument.startswith("model.init=") for argument in arguments):
        arguments = [*arguments, "model.init=random"]  # weights that are not there are no problem: none is read
    source, choices = gather(arguments, plugin or [], model, data)

    from sftkit.console import console
    from sftkit.run.pipeline import Pipeline
    from sftkit_commands.preview.page import LEGEND, MARKS, STYLES, WEIGHT_MEANING, as_text, read_batch, write_html

    prepared = Pipeline(config=source, plugins=choices).prepare()
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
    from sftkit.errors import ConfigError, Problem, nearest

    if split not in splits:
        known = f"the splits are: {', '.join(splits)}"
        raise ConfigError(Problem(f"there is no split {split!r}", "--split", nearest(split, splits) or known))
    rows = splits[split]
    if not hasattr(rows, "__len__"):
        return list(islice(rows, first, first + number))
    if first >= len(rows):
        raise ConfigError(Problem(f"{split} has {len(rows)} rows", "--row", "give the number of one of them"))
    return [rows[index] for index in range(first, min(first + number, len(rows)))]
