"""The command line: the core's own commands, and those of installed distributions."""

from __future__ import annotations

import sys

import typer

from sftkit.cli import cache, plugins, run, schema
from sftkit.cli.commands import CommandGroup
from sftkit.cli.process import prepare_process, print_traceback

app = typer.Typer(
    cls=CommandGroup,
    name="sftkit",
    help="Supervised fine-tuning of language models, with every technique a plugin.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("plugins")(plugins.plugins)
app.command("schema")(schema.schema)
app.add_typer(cache.app, name="cache")


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Show the version and exit.")) -> None:
    if version:
        import sftkit

        typer.echo(sftkit.__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line: exit 0 when done, 1 for a bug, 2 for what the user can fix, 130 on Ctrl-C."""
    from sftkit.errors import SftkitError

    prepare_process()
    try:
        app()
    except SftkitError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except Exception as error:  # a bug
        print_traceback(error)
        sys.exit(1)
