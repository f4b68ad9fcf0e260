"""What a plugin needs of the machine, checked without importing heavy packages."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement

from sftkit.errors import Problem
from sftkit.machine import has_gpu as has_gpu


def requirement_problem(text: str, where: str) -> Problem | None:
    """The problem with one requirement, such as ``"pillow>=10"``; None if it is met."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        return Problem(f"{text!r} is not a valid requirement: {error}", where, "correct it in the plugin")
    if requirement.marker and not requirement.marker.evaluate():
        return None
    fix = install_command(requirement)
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Problem(f"needs the package {requirement.name}, which is not installed", where, fix)
    if not requirement.specifier.contains(version, prereleases=True):
        return Problem(f"needs {requirement.name}{requirement.specifier}, but {version} is installed", where, fix)
    return None


def install_command(*requirements: Requirement | str) -> str:
    """The pip command that installs what requirements name, without their markers."""
    bare = [Requirement(str(each)) for each in requirements]
    for each in bare:
        each.marker = None
    return " ".join(["pip install", *(f'"{each}"' for each in bare)])
