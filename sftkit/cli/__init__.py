"""The command line: the core's own commands, and those of installed distributions."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import typer

from sftkit.cli import cache, completion, plugins, run, schema
from sftkit.cli.commands import CommandGroup
from sftkit.cli.process import prepare_process, print_traceback

FIRST = """
Try it without a model or data of yours, then on your own:

    sftkit run
    sftkit check -m Qwen/Qwen3-0.6B -d train.jsonl
    sftkit run -m Qwen/Qwen3-0.6B -d train.jsonl -p peft

`sftkit COMMAND --help` shows what a command takes.
"""

app = typer.Typer(
    cls=CommandGroup,
    name="sftkit",
    help="Supervised fine-tuning of language models, with every technique a plugin.",
    epilog=FIRST,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run", cls=run.RunCommand, epilog=run.EXIT_CODES)(run.run)
app.command("plugins")(plugins.plugins)
app.command("schema")(schema.schema)
app.add_typer(cache.app, name="cache")


@app.callback(invoke_without_command=True)
def _options(
    ctx: typer.Context,
    version: bool = typer.Option(False, "--version", help="Show the version and exit."),
    install: bool = typer.Option(
        False, "--install-completion", help="Let the shell complete commands, options and keys: bash, zsh or fish."
    ),
    show: bool = typer.Option(False, "--show-completion", help="Show the script that does."),
    shell: str = typer.Option("", "--completion-shell", hidden=True),
) -> None:
    if version:
        import sftkit

        typer.echo(sftkit.__version__)
    elif install or show:
        name = completion.shell_named(shell)
        if show:
            typer.echo(completion.script(name), nl=False)
        else:
            files = ", ".join(map(str, completion.install(name)))
            typer.echo(f"written: {files}. Completion works in new shells.")
    elif ctx.invoked_subcommand is None:
        ctx.get_help()
    else:
        return
    raise typer.Exit


def main() -> None:
    """Run the command line.

    It exits with 0 when done, 1 and a traceback for a bug, 2 for what the user can fix, 3 if the training failed, 130
    or 143 if the run was interrupted.
    """
    from sftkit.answers import using_answers
    from sftkit.cli.ending import end_process
    from sftkit.cli.errors import place_of, print_problems, show_command, show_problems
    from sftkit.console import end_live
    from sftkit.errors import Interrupted, OtherProcessError, Problem, SftkitError
    from sftkit.redact import hide
    from sftkit.run.interruption import remembering_interrupts

    prepare_process()
    place, first = place_of()
    arguments = sys.argv[1:]
    shown: dict[str, Any] = {"as_json": "--json" in arguments and first, "place": place}
    try:
        completion.complete_and_exit(lambda: typer.main.get_command(app))
        sys.argv[1:] = map(hide, arguments)  # which trackers record
        with using_answers(), remembering_interrupts():
            app(arguments, prog_name="sftkit")
    except OtherProcessError as error:  # which it has shown
        if shown["as_json"]:
            print_problems(error.problems)
        end_process(error.exit_code)
    except SftkitError as error:
        show_problems(error.problems, **shown)
        end_process(error.exit_code)
    except Interrupted as error:
        show_problems([Problem(str(error))], label="interrupted", **shown)
        if error.directory is not None:
            again = resume_command(arguments, error.directory)
            show_command("continue with", hide(again), place)
        end_process(error.exit_code)
    except KeyboardInterrupt:
        show_problems([Problem("by Ctrl-C")], label="interrupted", **shown)
        end_process(130)
    except Exception as error:  # a bug
        end_live()
        if shown["as_json"]:
            what = f"{type(error).__name__}: {error}"
            show_problems([Problem(what, "a bug", "report it with the traceback")], **shown)
        print_traceback(error)
        end_process(1)


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
    return shlex.join(["sftkit", *_launcher(), *kept])


def _launcher() -> list[str]:
    """What starts as many processes as this run has."""
    from sftkit.ranks import local_world_size, world_size

    if (processes := world_size()) == 1:
        return []
    local = local_world_size()
    nodes = [] if local == processes else ["--nnodes", str(processes // local)]
    return ["launch", *nodes, "--nproc", str(local)]
