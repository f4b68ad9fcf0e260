"""Which process of a run this is, and how many there are, as the launcher says in the environment."""

from __future__ import annotations

import os

from sftkit.errors import ConfigError, Problem

LAUNCH = "start it with: sftkit launch --nproc N run ..."


def launch_advice(size: int | str = "N") -> str:
    """How to start several processes, and how to check the run before.

    Args:
        size: how many.
    """
    return f"start several: sftkit launch --nproc {size} run ...; to check it first: WORLD_SIZE={size} sftkit check ..."


def number(name: str, default: int) -> int:
    """A number that the launcher sets.

    Raises:
        ConfigError: if it is not one.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal():
        raise ConfigError(not_a_number(name, text))
    return int(text)


def not_a_number(name: str, text: str) -> Problem:
    """The problem that a variable of the launcher is not a number."""
    return Problem(f"{text!r} is not a number", f"the variable {name}", f"unset it; {LAUNCH}")


def rank() -> int:
    """The number of this process, from 0."""
    return number("RANK", 0)


def world_size() -> int:
    """The number of processes of the run."""
    return number("WORLD_SIZE", 1)


def local_rank() -> int:
    """The number of this process among those that the launcher has started on this machine, from 0."""
    return number("LOCAL_RANK", 0)


def local_world_size() -> int:
    """The number of processes of the run on this machine; without a launcher that says so, all are here."""
    return number("LOCAL_WORLD_SIZE", world_size())


def is_main_process() -> bool:
    """Whether this process writes files and shows output."""
    return rank() == 0
