"""What a launch will do, in the terminal."""

from __future__ import annotations

import logging

import typer

from sftkit.api import console, show_json, show_table
from sftkit_commands.launch.job import Plan
from sftkit_commands.launch.targets import Target, describe_options

logger = logging.getLogger("sftkit")


def show_options(target: Target, as_json: bool) -> None:
    """List the options of a target."""
    rows = describe_options(target.module)
    if as_json:
        show_json({"options": [dict(zip(("name", "default", "description"), row, strict=True)) for row in rows]})
        return
    show_table(console(), f"Options of --on {target.name}", ("option", "default", "description"), rows)
    if hint := getattr(target.module, "HINT", ""):
        console().print(hint, markup=False)


def show_plan(plan: Plan, dry_run: bool, as_json: bool) -> None:
    """Show what is chosen, and in a dry run what would be done."""
    for note in plan.notes:
        logger.info(note)
    if as_json and (dry_run or not plan.runs_here):
        show_json({**plan.facts, "dry_run": dry_run})
    elif dry_run:
        typer.echo(plan.text.rstrip("\n"))
