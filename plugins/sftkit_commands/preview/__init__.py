"""``sftkit preview``: show what the model sees and what it is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from sftkit.api import ConfigArguments, DataOption, JsonOption, ModelOption, PluginOption, pipeline_from

if TYPE_CHECKING:
    from sftkit.api import PreparedRun, TokenRow


def preview(
    arguments: ConfigArguments = None,
    plugin: PluginOption = None,
    model: ModelOption = "",
    data: DataOption = "",
    split: Annotated[
        str, typer.Option("--split", "-s", metavar="NAME", help="train, or the name of an evaluation set.")
    ] = "train",
    rows: Annotated[
        int, typer.Option("--rows", "-n", min=1, metavar="N", help="Number of rows, which form one batch.")
    ] = 3,
    row: Annotated[int, typer.Option("--row", min=1, metavar="K", help="Number of the first row to show.")] = 1,
    ids: Annotated[bool, typer.Option("--ids", help="Show token ids.")] = False,
    html: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--html", metavar="FILE", help="Write an HTML page instead."),
    ] = None,
    dropped: Annotated[
        bool, typer.Option("--dropped", help="Show rows that were dropped, up to N of each reason (at most 20).")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what the model sees and what it is trained on, from the batches of the training.

    It takes the arguments of `sftkit run`, and reads no weights:

        sftkit preview sft.yaml -p packing --rows 2
        sftkit preview sft.yaml --split eval --row 40 --ids
        sftkit preview sft.yaml -p dedup --dropped
    """
    from sftkit.api import FirstRows, note_lines, printing_json, read_batch, show_json, working

    _check_dropped(dropped, html, ids, row)
    if not any(argument.startswith("model.init=") for argument in arguments or []):
        arguments = [*(arguments or []), "model.init=random"]  # a preview works without weights
    early = _Early(ids)
    wanted = FirstRows(split, row - 1, rows, early.show)
    with printing_json(as_json), working("reading the configuration"):
        at_once = not (as_json or dropped or html)
        prepared = pipeline_from(arguments, plugin, model, data).prepare(wanted if at_once else None)
        _check_split(prepared.data.splits, split)
        if not dropped:
            examples = _examples(prepared, split, row - 1, rows)
            shown = read_batch(examples, prepared.collator, prepared.tokenizer, first=row - 1)
            noted = note_lines({split: prepared.data.summary()[split]})
    if dropped:
        _show_dropped(prepared, split, rows, as_json)
        return
    if html is not None:
        from sftkit_commands.preview.page import write_html

        write_html(html, shown, f"sftkit preview: {split}", ids, noted)
    if as_json:
        show_json({"split": split, "rows": [each.as_dict() for each in shown], "noted": noted})
    elif html is None:
        early.complete(shown, noted)
    else:
        from sftkit.api import console

        console().print(f"{len(shown)} rows of {split} written to {html}", markup=False)


def _check_dropped(dropped: bool, html: Path | None, ids: bool, row: int) -> None:
    """Refuse options that dropped rows do not have."""
    if dropped and (html is not None or ids or row != 1):
        from sftkit.api import ConfigError, Problem

        raise ConfigError(Problem("dropped rows have no tokens", "--dropped", "leave out --html, --ids and --row"))


def _show_dropped(prepared: PreparedRun, split: str, rows: int, as_json: bool) -> None:
    from sftkit.api import console, show_json
    from sftkit_commands.preview.dropped import by_reason, print_dropped

    reasons = by_reason(prepared.data.summary()[split], prepared.data.dropped[split], rows)
    if as_json:
        show_json({"split": split, "dropped": reasons})
    else:
        print_dropped(console(), split, reasons)


@dataclass
class _Early:
    """Prints the first rows as soon as they are known, and the others when all data is prepared.

    Attributes:
        ids: whether to show token ids.
        shown: the rows that were printed and stay as they are.
    """

    ids: bool
    shown: list[TokenRow] | None = None

    def show(self, rows: list[TokenRow], final: bool) -> None:
        """Print the first rows; in a terminal also documents that are still to be packed or filtered."""
        from sftkit.api import console

        screen = console()
        if final:
            self.shown = rows
            self._print(rows)
        elif screen.is_terminal:
            screen.print("the first documents, before all of them are filtered and packed:\n", style="bold")
            self._print(rows)
            screen.print("\nthe rows that the model sees:\n", style="bold")

    def complete(self, rows: list[TokenRow], noted: list[str]) -> None:
        """Print what was not printed yet: the rows, if they are not those that were, and the notes."""
        from sftkit.api import console

        screen = console()
        if rows != self.shown:
            if self.shown is not None:
                screen.print("\nwith all rows known, these are the rows that the model sees:\n", style="bold")
            self._print(rows)
        for line in noted:
            screen.print(f"\n{line}", markup=False)

    def _print(self, rows: list[TokenRow]) -> None:
        from sftkit.api import console
        from sftkit_commands.preview.text import print_rows

        print_rows(console(), rows, self.ids)


def _check_split(splits: Mapping[str, Any], split: str) -> None:
    from sftkit.api import ConfigError, Problem, nearest

    if split not in splits:
        known = f"the splits are: {', '.join(splits)}"
        raise ConfigError(Problem(f"there is no split {split!r}", "--split", nearest(split, splits) or known))


def _examples(prepared: PreparedRun, split: str, first: int, number: int) -> list[dict[str, Any]]:
    from sftkit.api import ConfigError, Problem

    known = prepared.data.described.get(split)
    if known is not None and first >= known["rows"]:
        what = f"there is no row {first + 1}: {split} has {known['rows']} rows"
        raise ConfigError(Problem(what, "--row", f"use a number from 1 to {known['rows']}"))
    return prepared.data.rows(split, first, number)
