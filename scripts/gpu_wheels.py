"""Collect the wheels that a GPU machine without network needs to run scripts/gpu.py.

    python scripts/gpu_wheels.py DIR [--have FILE] [--extra-dir DIR2] [--python 3.12]

DIR receives sftkit's own wheel, built from this checkout, and every package that sftkit, TRL, Liger and the tests need
and that the machine lacks, for CPython on Linux x86-64. Wheels that were in DIR before are replaced. FILE lists what
the machine has, one `name==version` a line; a `name` alone fits every requirement. DIR2 receives what is optional:
bitsandbytes, which is large, and unsloth; each is left out, with the reason, if it does not fit. torch, torchvision,
triton and NVIDIA's libraries are never downloaded.

The newest release that fits is chosen. One that requires another version of an installed package is replaced by an
older one. In the end, every requirement of every wheel is met by a wheel or by the list; if not, it is an error. So are
more than 60 MiB in a folder. On the machine, in the checkout:

    python -m pip install --no-index --no-deps --target site DIR/*.whl DIR2/*.whl
    PYTHONPATH=site python scripts/gpu.py
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from _wheels import Have, Wheel, WheelError, assumed, collect, incomplete
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
LIMIT = 60 * MIB
#: What scripts/gpu.py uses besides sftkit, and what it uses where it is installed; versions as in pyproject.toml.
USED = ("liger-kernel", "peft", "pillow", "pytest", "pytest-xdist", "trl")
OPTIONAL = ("bitsandbytes", "unsloth")
PLATFORMS = [*(f"manylinux_2_{minor}" for minor in range(39, 16, -1)), "manylinux2014", "manylinux1"]

Fetch = Callable[[Requirement], Wheel]


def pip(*arguments: str | Path) -> None:
    """Run pip of this Python.

    Raises:
        WheelError: pip failed.
        SystemExit: the package index cannot be reached.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "connection broken" in done.stdout + done.stderr:
        raise SystemExit(f"The package index cannot be reached.\n{done.stderr}")
    if done.returncode:
        raise WheelError(done.stderr.strip())


def download(requirement: Requirement, python: str, cache: Path) -> Wheel:
    """The newest wheel of a requirement that runs on the GPU machine."""
    platforms = [f"--platform={platform}_x86_64" for platform in PLATFORMS]
    target = ("--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms)
    with tempfile.TemporaryDirectory(dir=cache) as directory:
        try:
            pip("download", "--quiet", "--no-deps", "--dest", directory, *target, str(requirement))
        except WheelError as error:
            if "No matching distribution" in str(error):
                raise WheelError(f"No release of {requirement} has a wheel for Python {python}:") from None
            raise
        path = next(Path(directory).glob("*.whl"))
        return Wheel.read(path.rename(cache / path.name))


def build(cache: Path) -> Wheel:
    """sftkit's own wheel."""
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", cache, ROOT)
    return Wheel.read(next(cache.glob("sftkit_train-*.whl")))


def read_have(path: Path) -> dict[str, Version | None]:
    """The packages of the machine, by their normalized names."""
    have: dict[str, Version | None] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            requirement = Requirement(text)
            pins = [Version(one.version) for one in requirement.specifier if one.operator == "=="]
            if len(pins) != len(requirement.specifier) or len(pins) > 1:
                raise ValueError("the version is not exact")
        except (InvalidRequirement, ValueError) as error:
            raise WheelError(f"{path}, line {number}: write `name==version` or `name`, not {text!r}.") from error
        have[canonicalize_name(requirement.name)] = pins[0] if pins else None
    return have


def place(wheels: Iterable[Wheel], folder: Path, limit: int = LIMIT) -> str:
    """Copy the wheels into a folder instead of those it has, and list them with their sizes, the largest first.

    Raises:
        WheelError: they are too large together.
    """
    sizes = {wheel.path: wheel.path.stat().st_size for wheel in wheels}
    total, paths = sum(sizes.values()), sorted(sizes, key=lambda path: -sizes[path])
    if total > limit:
        largest = f"{paths[0].name} with {sizes[paths[0]] / MIB:.1f} MiB"
        raise WheelError(f"{total / MIB:.1f} MiB of wheels exceed {limit / MIB:.0f} MiB; the largest is {largest}.")
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.whl"):
        path.unlink()
    for path in paths:
        shutil.copy(path, folder)
    lines = [f"{sizes[path] / MIB:8.2f} MiB  {path.name}" for path in paths]
    return "\n".join([f"{folder}: {total / MIB:.1f} MiB of at most {limit / MIB:.0f}, wheels: {len(paths)}", *lines])


def check(folders: Iterable[Path], have: Have, python: str) -> str:
    """Read the folders again and say what holds.

    Raises:
        WheelError: a requirement is not met.
    """
    wheels = [Wheel.read(path) for folder in folders for path in sorted(folder.glob("*.whl"))]
    if missing := incomplete(wheels, have, python):
        raise WheelError("\n  ".join(["The wheels are not complete:", *missing]))
    lines = ["Complete: the wheels and the machine's packages meet every requirement."]
    if unknown := assumed(wheels, have, python):
        lines += [
            "Assumed, since the list of the machine's packages has no version:",
            *(f"  {line}" for line in unknown),
        ]
    return "\n".join(lines)


def roots_of(sftkit: Wheel, names: Iterable[str]) -> list[Requirement]:
    """sftkit's requirements on some packages, with the versions that its extras name."""
    found = {canonicalize_name(requirement.name): requirement for requirement in sftkit.requires}
    return [found[canonicalize_name(name)] for name in names]


def optional(sftkit: Wheel, have: Have, python: str, fetch: Fetch) -> tuple[list[Wheel], dict[str, str]]:
    """The wheels for the second folder, and why a package is not among them."""
    wheels: list[Wheel] = []
    left_out = {}
    for root in roots_of(sftkit, OPTIONAL):
        there = {**have, **{wheel.name: wheel.version for wheel in wheels}}
        try:
            wheels += collect([root], there, python, fetch)
        except WheelError as error:
            left_out[root.name] = str(error)
    return wheels, left_out


def run(given: argparse.Namespace, cache: Path) -> None:
    have, python = read_have(given.have), given.python
    folders = [given.dir]

    def fetch(requirement: Requirement) -> Wheel:
        return download(requirement, python, cache)

    sftkit = build(cache)
    wheels = collect([Requirement(sftkit.name), *roots_of(sftkit, USED)], have, python, fetch, [sftkit])
    print(place(wheels, given.dir))
    if given.extra_dir:
        there = {**have, **{wheel.name: wheel.version for wheel in wheels}}
        more, left_out = optional(sftkit, there, python, fetch)
        print(place(more, given.extra_dir))
        for name, reason in left_out.items():
            print(f"Left out: {name}. {reason}")
        folders.append(given.extra_dir)
    print(check(folders, have, python))


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, usage="%(prog)s DIR [options]")
    parser.add_argument("dir", type=Path, metavar="DIR", help="the folder for the wheels, at most 60 MiB")
    have = Path(__file__).with_name("gpu_machine.txt")
    parser.add_argument("--have", type=Path, default=have, metavar="FILE", help=f"what the machine has ({have.name})")
    parser.add_argument("--extra-dir", type=Path, metavar="DIR2", help="a second folder, for bitsandbytes and unsloth")
    parser.add_argument("--python", default="3.12", metavar="3.N", help="the machine's Python (3.12)")
    given = parser.parse_args()
    if not given.have.is_file():
        parser.error(f"--have: no such file: {given.have}")
    if given.extra_dir and given.extra_dir.resolve() == given.dir.resolve():
        parser.error("DIR and DIR2 are the same folder. Choose two.")
    with tempfile.TemporaryDirectory() as cache:
        try:
            run(given, Path(cache))
        except (OSError, WheelError) as error:
            raise SystemExit(f"gpu_wheels: {error}") from None


if __name__ == "__main__":
    main()
