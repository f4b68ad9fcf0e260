"""The command line: the core's own commands, and those of installed distributions."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

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
app.command("run", cls=run.RunCommand, epilog=run.EXIT_CODES)(run.run)
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
    """Run the command line.

    It exits with 0 when done, 1 and a traceback for a bug, 2 for what the user can fix, 3 if the training failed, 130
    or 143 if the run was interrupted.
    """
    from sftkit.errors import Interrupted, SftkitError
    from sftkit.redact import hide
    from sftkit.run.distributed import is_main_process, world_size

    prepare_process()
    arguments = sys.argv[1:]
    sys.argv[1:] = map(hide, arguments)  # which trackers record
    try:
        app(arguments)
    except SftkitError as error:
        for problem in error.problems:
            _say(f"error: {problem}")
        sys.exit(error.exit_code)
    except Interrupted as error:
        if is_main_process():
            _say(f"interrupted: {error}")
        if is_main_process() and error.directory is not None:
            again = resume_command(arguments, error.directory)
            _say(hide(f"continue with: {'torchrun ... ' * (world_size() > 1)}{again}"))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(130)
    except Exception as error:  # a bug
        print_traceback(error)
        sys.exit(1)


def _say(text: str) -> None:
    from sftkit.run.distributed import rank, world_size

    place = f"process {rank()}: " if world_size() > 1 else ""
    print(f"{place}{text}", file=sys.stderr)  # noqa: T201


def resume_command(arguments: list[str], directory: Path) -> str:
    """The command that continues a run, or starts it again if it has saved no checkpoint.

    Args:
        arguments: those of the command that was interrupted.
        directory: its run directory.
    """
    from sftkit.checkpoints import newest

    kept = [item for item in arguments if item != "--overwrite"]
    if not any(item in ("-o", "--output") or item.startswith(("--output=", "train.output_dir=")) for item in kept):
        kept += ["--output", str(directory)]
    if not any(item.partition("=")[0] == "--resume" for item in kept):
        kept += ["--resume"] if newest(directory, contents=False).path else ["--resume", "auto"]
    return shlex.join(["sftkit", *kept])
