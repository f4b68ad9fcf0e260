"""A command within a process that something else has started, such as a worker of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def run_command(arguments: Sequence[str], **given: Any) -> None:
    """Do what the command line does, as one of the processes that ``RANK`` and so on describe; in any thread.

    Args:
        arguments: those of ``sftkit``, the name of the command first.
        given: objects that the command takes besides, in ``ctx.obj``: ``run`` takes ``callbacks``, further
            `transformers.TrainerCallback` objects; ``prepare`` takes ``executor`` and ``size``, as a `Pool`.

    Raises:
        SftkitError: if it fails.
        Interrupted: if a run was interrupted, as by `interrupt_runs`.
    """
    from sftkit.cli import app
    from sftkit.cli.process import prepare_process

    prepare_process()
    app([*arguments], prog_name="sftkit", standalone_mode=False, obj=given)
