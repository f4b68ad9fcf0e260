"""``sftkit schema``: the JSON schema of a configuration, for editors."""

from __future__ import annotations

import typer


def schema() -> None:
    """Print the JSON schema of the configuration, with every installed plugin's options."""
    import json

    from sftkit.plugin.schema import config_schema

    typer.echo(json.dumps(config_schema(), indent=2))
