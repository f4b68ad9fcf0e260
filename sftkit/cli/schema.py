"""``sftkit schema``: the JSON schema of a configuration, for editors."""

from __future__ import annotations

import typer

from sftkit.cli.common import JsonOption


def schema(as_json: JsonOption = True) -> None:
    """Print the JSON schema of the configuration, with every installed plugin's options.

    Editors complete and check YAML files with it:

        sftkit schema > sft.schema.json
    """
    import json

    from sftkit.plugin.schema import config_schema

    typer.echo(json.dumps(config_schema(), indent=2))
