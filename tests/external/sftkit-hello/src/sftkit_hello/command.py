"""``sftkit hello``: greet, and count the rows of a run."""

from __future__ import annotations

import typer

from sftkit.api import ConfigArguments, DataOption, ModelOption, PluginOption, pipeline_from


def hello(
    arguments: ConfigArguments = None,
    plugin: PluginOption = None,
    model: ModelOption = "",
    data: DataOption = "",
) -> None:
    """Say how many rows a run trains on."""
    run = pipeline_from(arguments, plugin, model, data).prepare()
    typer.echo(f"hello, {run.data.described['train']['rows']} rows")
