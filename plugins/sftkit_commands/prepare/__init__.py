"""``sftkit prepare``: prepare the data of a run for later runs, also on other machines."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from sftkit.api import ConfigArguments, DataOption, JsonOption, ModelOption, PluginOption, pipeline_from


def prepare(
    ctx: typer.Context,
    arguments: ConfigArguments = None,
    to: Annotated[
        str, typer.Option("--to", metavar="DIR", help="A directory, or the URL of one, such as s3://bucket/data.")
    ] = "",
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--workers", "-w", min=1, metavar="N", help="Number of processes. Default: one per processor."),
    ] = None,
    plugin: PluginOption = None,
    model: ModelOption = "",
    data: DataOption = "",
    json: JsonOption = False,
) -> None:
    """Prepare the data of a run once, for runs on any number of machines.

    It takes the arguments of `sftkit run`, and reads no weights. Runs use the data with data.prepared:

        sftkit prepare sft.yaml --to prepared --workers 8
        sftkit run sft.yaml data.prepared=prepared
    """
    from sftkit.api import (
        ConfigError,
        Pool,
        Problem,
        note_lines,
        prepare_to,
        printing_json,
        show_json,
        without_notes,
        working,
    )

    if not to:
        raise ConfigError(Problem("the directory is missing", "sftkit prepare", "name it with --to DIR"))
    given = ctx.obj or {}  # by `run_command`
    pool = Pool(given["executor"], given["size"]) if "executor" in given else None
    if pool is not None and workers:
        what = "the workers are those of the cluster"
        raise ConfigError(Problem(what, "--workers", "remove it"))
    with printing_json(json), working("reading the configuration"):
        manifest = prepare_to(pipeline_from(arguments, plugin, model, data), to, pool or workers or 0)
    splits = {name: {**split["summary"], **split["counts"]} for name, split in manifest["splits"].items()}
    shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
    size = sum(shard["bytes"] for shard in shards)
    if json:
        show_json({"directory": to, "shards": len(shards), "bytes": size, "splits": splits})
        return
    _show(to, len(shards), size, {name: without_notes(counts) for name, counts in splits.items()}, note_lines(splits))


def _show(to: str, number: int, size: int, splits: dict[str, Any], notes: list[str]) -> None:
    from sftkit.api import console, show_data, size_text

    screen = console()
    show_data(screen, splits)
    for line in notes:
        screen.print(line, markup=False)
    files = "1 shard" if number == 1 else f"{number} shards"
    screen.print(f"{files}, {size_text(size)}, in {to}. Use them with data.prepared={to}", markup=False)
