"""What a launch will do, in the terminal."""

from __future__ import annotations

import typer

from sftkit.api import console, show_json, show_table
from sftkit_commands.launch.job import Plan
from sftkit_commands.launch.targets import Target, describe_options


def show_options(target: Target, as_json: bool) -> None:
    """List the options of a target."""
    rows = describe_options(target.module)
    if as_json:
        show_json({"options": [dict(zip(("name", "default", "description"), row, strict=True)) for row in rows]})
        return
    show_table(console(), f"Options of --on {target.name}", ("option", "default", "description"), rows)
    if hint := getattr(target.module, "HINT", ""):
        console().print(hint, markup=False)


def show_plan(plan: Plan, as_json: bool) -> None:
    """Print what would be done."""
    if as_json:
        show_json({**plan.facts, "dry_run": True})
    else:
        typer.echo(plan.text.rstrip("\n"))


def start_plan(plan: Plan, as_json: bool) -> int:
    """Do it, and print what it is that was done; returns the exit code."""
    code = plan.start()
    if as_json and not plan.runs_here:
        show_json({**plan.facts, "dry_run": False})
    return code
