"""Wheels, what they require, and which of them another machine needs beside its own packages."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

NEVER = re.compile(r"torch(vision|audio)?|triton|(nvidia|cuda)-.*")

#: The version of each package of the machine; None fits every requirement.
Have = Mapping[str, "Version | None"]


class WheelError(Exception):
    """The wheels cannot be collected; the message says why."""


@dataclass(frozen=True)
class Wheel:
    """A wheel file and its metadata."""

    path: Path
    name: str
    version: Version
    requires: tuple[Requirement, ...]

    @classmethod
    def read(cls, path: Path) -> Wheel:
        with zipfile.ZipFile(path) as archive:
            inner = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
            metadata = Metadata.from_email(archive.read(inner), validate=False)
        return cls(path, canonicalize_name(metadata.name), metadata.version, tuple(metadata.requires_dist or ()))

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Need:
    """A requirement, and the wheel that has it; None for one of the user."""

    by: Wheel | None
    requirement: Requirement

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)

    def met(self, version: Version | None) -> bool:
        return version is None or self.requirement.specifier.contains(version, prereleases=True)

    def __str__(self) -> str:
        return f"{self.by or 'the GPU run'} requires {self.name}{self.requirement.specifier}"


def environment(python: str) -> dict[str, str]:
    """The values of environment markers on the machine: CPython on Linux x86-64."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def needs(roots: Iterable[Requirement], wheels: Mapping[str, Wheel], python: str) -> Iterator[Need]:
    """Every active requirement that the roots lead to through the wheels."""
    target = environment(python)
    todo, seen = [Need(None, root) for root in roots], set()
    while todo:
        need = todo.pop()
        yield need
        wheel = wheels.get(need.name)
        for extra in ("", *sorted(need.requirement.extras)):
            if wheel is None or (wheel.name, extra) in seen:
                continue
            seen.add((wheel.name, extra))
            for requirement in wheel.requires:
                if requirement.marker is None or requirement.marker.evaluate({**target, "extra": extra}):
                    todo.append(Need(wheel, requirement))


def all_needs(wheels: Iterable[Wheel], python: str) -> Iterator[Need]:
    """Every active requirement of some wheels."""
    by_name = {wheel.name: wheel for wheel in wheels}
    return needs(map(Requirement, by_name), by_name, python)


def problem(need: Need, wheels: Mapping[str, Wheel], have: Have) -> str:
    """Why a requirement is not met by the wheels and the machine; empty if it is."""
    if need.name in wheels:
        wheel = wheels[need.name]
        return "" if need.met(wheel.version) else f"{need}, but {wheel} is among the wheels"
    if need.name in have:
        version = have[need.name]
        return "" if need.met(version) else f"{need}, but {need.name} {version} is installed"
    never = " and never downloaded" if NEVER.fullmatch(need.name) else ""
    return f"{need}, which is neither among the wheels nor installed{never}"


def incomplete(wheels: Iterable[Wheel], have: Have, python: str) -> list[str]:
    """Each requirement of a wheel that neither the wheels nor the machine meet."""
    by_name = {wheel.name: wheel for wheel in wheels}
    every = all_needs(by_name.values(), python)
    return sorted({found for need in every if (found := problem(need, by_name, have))})


def assumed(wheels: Iterable[Wheel], have: Have, python: str) -> list[str]:
    """Each requirement of a version on a package whose version on the machine is not known."""
    unknown = {name for name, version in have.items() if version is None}
    every = all_needs(wheels, python)
    return sorted({str(need) for need in every if need.name in unknown and need.requirement.specifier})


def collect(
    roots: Iterable[Requirement],
    have: Have,
    python: str,
    fetch: Callable[[Requirement], Wheel],
    wheels: Iterable[Wheel] = (),
) -> list[Wheel]:
    """The wheels that the roots need and the machine lacks; ``wheels`` are there already and stay as they are.

    The newest release that all requirements found so far allow is fetched. If it requires another version of an
    installed package, an older release replaces it before its other requirements count. If the requirements of two
    wheels exclude each other, no older release of these two is tried.

    Raises:
        WheelError: no release fits, with the requirements that exclude it.
    """
    roots, fixed = list(roots), {wheel.name for wheel in wheels}
    chosen = {wheel.name: wheel for wheel in wheels}
    limits: dict[str, SpecifierSet] = {}
    reasons: dict[str, list[str]] = {}
    while True:
        every = list(needs(roots, chosen, python))
        unmet = {need: found for need in every if (found := problem(need, chosen, have))}
        if not unmet:
            return [wheel for name, wheel in chosen.items() if any(need.name == name for need in every)]
        installed = [need for need in unmet if need.name in have or NEVER.fullmatch(need.name)]
        changed = set()
        for need in installed or unmet:
            if not installed:
                name, limit, reason = need.name, need.requirement.specifier, str(need)
            elif need.by:  # no other version of the installed package can be had: an older wheel may do
                name, limit, reason = need.by.name, SpecifierSet(f"<{need.by.version}"), unmet[need]
            else:
                raise WheelError(f"{unmet[need]}.")
            if name in fixed:
                raise WheelError(f"{unmet[need]}.")
            limits[name] = limits.get(name, SpecifierSet()) & limit
            reasons.setdefault(name, []).append(reason)
            changed.add(name)
        for name in sorted(changed):
            chosen[name] = fetched(fetch, Requirement(f"{name}{limits[name]}"), reasons[name])


def fetched(fetch: Callable[[Requirement], Wheel], requirement: Requirement, reasons: Iterable[str]) -> Wheel:
    try:
        return fetch(requirement)
    except WheelError as error:
        raise WheelError("\n  ".join((str(error), *dict.fromkeys(reasons)))) from None
