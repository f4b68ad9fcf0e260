"""The folder of wheels for a GPU machine: complete, small, and enough to run the package and its tests."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

LACKING = {"datasets", "liger-kernel", "pydantic", "trl"}


@pytest.fixture(autouse=True)
def scripts(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "scripts"))


@pytest.fixture
def module():
    return importlib.import_module("_wheels")


@pytest.fixture
def script():
    return importlib.import_module("gpu_wheels")


@pytest.fixture
def make(tmp_path, module):
    """Writes a wheel that has only metadata into the folder ``index``, and reads it."""
    folder = tmp_path / "index"
    folder.mkdir()

    def wheel(name, version, *requires, tag="py3-none-any", size=0):
        path = folder / f"{name}-{version}-{tag}.whl"
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requires]
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join([*lines, "", ""]))
            archive.writestr(f"{name}-{version}.dist-info/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
            archive.writestr(f"{name}-{version}.dist-info/RECORD", "")
            archive.writestr(f"{name}.bin", bytes(size))
        return module.Wheel.read(path)

    return wheel


@pytest.fixture
def fetch(tmp_path, monkeypatch, script):
    """Downloads with pip, from the folder ``index`` alone."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    cache = tmp_path / "cache"
    cache.mkdir()
    return partial(script.download, python="3.12", cache=cache)


@pytest.fixture
def collect(module, fetch):
    """Collects from the folder ``index``; returns names and versions."""

    def run(*roots, have=None, wheels=()):
        found = module.collect(map(Requirement, roots), have or {}, "3.12", fetch, wheels)
        return sorted(map(str, found))

    return run


def incomplete(module, *wheels, **have):
    return module.incomplete(wheels, {name: version and Version(version) for name, version in have.items()}, "3.12")


def test_a_missing_requirement_is_reported_by_name(module, make):
    found = incomplete(module, make("outer", "1.0", "inner>=2"), numpy="2.5.2")
    assert found == ["outer 1.0 requires inner>=2, which is neither among the wheels nor installed"]


def test_a_requirement_is_met_by_a_wheel_or_the_machine(module, make):
    outer = make("outer", "1.0", "Some_Inner>=2", "numpy<3,>=2.5")
    assert incomplete(module, outer, make("some_inner", "2.1"), numpy="2.5.2") == []


@pytest.mark.parametrize("marker", ['sys_platform == "win32"', 'python_version < "3.12"', 'extra == "dev"'])
def test_a_requirement_with_an_inactive_marker_is_ignored(module, make, marker):
    assert incomplete(module, make("outer", "1.0", f"inner; {marker}")) == []


def test_a_requirement_with_an_active_marker_counts(module, make):
    outer = make("outer", "1.0", 'inner; python_version >= "3.12" and platform_machine == "x86_64"')
    assert len(incomplete(module, outer)) == 1


def test_the_requirements_of_a_requested_extra_count(module, make):
    wheels = make("outer", "1.0", "middle[fast]"), make("middle", "1.0", 'inner; extra == "fast"')
    assert incomplete(module, *wheels) == ["middle 1.0 requires inner, which is neither among the wheels nor installed"]


def test_a_wrong_version_is_reported_with_both_sides(module, make):
    outer = make("outer", "1.0", "inner>=2", "numpy<2.5")
    assert incomplete(module, outer, make("inner", "1.9"), numpy="2.5.2") == [
        "outer 1.0 requires inner>=2, but inner 1.9 is among the wheels",
        "outer 1.0 requires numpy<2.5, but numpy 2.5.2 is installed",
    ]


def test_an_installed_package_of_unknown_version_is_listed_as_assumed(module, make):
    outer = make("outer", "1.0", "pyarrow>=24", "rich")
    assert incomplete(module, outer, pyarrow=None, rich=None) == []
    assert module.assumed([outer], {"pyarrow": None, "rich": None}, "3.12") == ["outer 1.0 requires pyarrow>=24"]


def test_the_newest_releases_are_collected_recursively(make, collect):
    make("outer", "1.0", "middle")
    make("middle", "1.0")
    make("middle", "1.2", "inner<3", "numpy")
    make("inner", "2.0")
    make("inner", "3.0")
    assert collect("outer", have={"numpy": Version("2.5.2")}) == ["inner 2.0", "middle 1.2", "outer 1.0"]


def test_a_release_that_the_machine_contradicts_is_replaced_by_an_older_one(make, collect):
    make("outer", "1.0", "numpy>=2")
    make("outer", "2.0", "numpy>=2.6", "inner")
    make("outer", "3.0", "numpy>=2.7", "inner")
    make("inner", "1.0")
    assert collect("outer", have={"numpy": Version("2.5.2")}) == ["outer 1.0"]


def test_if_no_older_release_fits_the_error_says_why(module, make, collect):
    make("outer", "2.0", "numpy>=2.6")
    with pytest.raises(module.WheelError) as caught:
        collect("outer>=2", have={"numpy": Version("2.5.2")})
    assert "outer 2.0 requires numpy>=2.6, but numpy 2.5.2 is installed" in str(caught.value)


def test_requirements_that_exclude_each_other_are_an_error_with_both(module, make, collect):
    make("one", "1.0", "inner<2")
    make("two", "1.0", "inner>=2")
    make("inner", "1.0")
    make("inner", "2.0")
    with pytest.raises(module.WheelError) as caught:
        collect("one", "two")
    assert "one 1.0 requires inner<2" in str(caught.value)
    assert "two 1.0 requires inner>=2" in str(caught.value)


def test_torch_is_never_downloaded(module, make, collect):
    make("torch", "2.11.0")
    outer = make("outer", "1.0", "torch>=2.9")
    with pytest.raises(module.WheelError, match=r"requires torch>=2.9, .* never downloaded"):
        collect("outer", wheels=[outer])
    assert collect("outer", have={"torch": Version("2.11.0+cu130")}) == ["outer 1.0"]


def test_an_optional_package_that_does_not_fit_is_left_out_with_the_reason(script, make, fetch):
    sftkit = make("sftkit", "1.0", 'bitsandbytes>=0.46; extra == "dev"', 'unsloth; extra == "unsloth"')
    make("bitsandbytes", "0.50", "torch")
    make("unsloth", "1.0", "trl<=1.15")
    there = {"torch": Version("2.11.0"), "trl": Version("1.16.0")}
    wheels, left_out = script.optional(sftkit, there, "3.12", fetch)
    assert [str(wheel) for wheel in wheels] == ["bitsandbytes 0.50"]
    assert left_out.keys() == {"unsloth"}
    assert "unsloth 1.0 requires trl<=1.15, but trl 1.16.0 is installed" in left_out["unsloth"]


def test_wheels_of_other_systems_and_pythons_are_not_collected(module, make, collect):
    make("outer", "1.0", tag="cp312-abi3-manylinux_2_28_x86_64")
    make("outer", "2.0", tag="cp312-cp312-macosx_11_0_arm64")
    make("outer", "3.0", tag="cp311-cp311-manylinux_2_17_x86_64")
    assert collect("outer") == ["outer 1.0"]


def test_a_folder_that_is_too_large_is_an_error_with_the_largest_wheel(module, script, make, tmp_path):
    wheels = [make("small", "1.0", size=1000), make("large", "1.0", size=100_000)]
    folder = tmp_path / "folder"
    with pytest.raises(module.WheelError, match=r"the largest is large-1\.0-py3-none-any\.whl"):
        script.place(wheels, folder, limit=100_000)
    assert not folder.exists()


def test_the_folders_former_wheels_are_replaced(module, script, make, tmp_path):
    folder = tmp_path / "folder"
    script.place([make("outer", "1.0")], folder)
    listed = script.place([make("outer", "2.0")], folder)
    assert [path.name for path in folder.iterdir()] == ["outer-2.0-py3-none-any.whl"]
    assert "outer-2.0-py3-none-any.whl" in listed


@pytest.mark.parametrize("line", ["torch>=2", "two words", "torch==2.*"])
def test_a_line_that_names_no_exact_version_is_an_error_with_its_number(module, script, tmp_path, line):
    path = tmp_path / "have.txt"
    path.write_text(f"# a comment\nnumpy==2.5.2\n{line}\n")
    with pytest.raises(module.WheelError, match=f"have.txt, line 3: .*{re.escape(line)}"):
        script.read_have(path)


def test_the_default_list_of_the_machine_lacks_what_is_collected(root, script):
    have = script.read_have(root / "scripts" / "gpu_machine.txt")
    assert have["torch"] == Version("2.11.0")
    assert have["pyarrow"] is None
    assert not LACKING & have.keys()


def installed(names):
    """The packages of this environment that have these names, and what they require, but for what must be collected."""
    found, todo = {}, list(names)
    while todo:
        name = canonicalize_name(todo.pop())
        if name in found or name in LACKING:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
        requires = map(Requirement, found[name].requires or ())
        todo += [one.name for one in requires if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def show(packages, site: Path) -> None:
    """Link the top-level files of these packages, and no others, into a directory."""
    for package in packages:
        for top in {path.parts[0] for path in package.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(package.locate_file(top))


@pytest.fixture
def machine(root, script, tmp_path):
    """A Python that has the packages of the GPU machine in this environment's versions, and the list of them."""
    packages = installed(script.read_have(root / "scripts" / "gpu_machine.txt"))
    listed = tmp_path / "have.txt"
    listed.write_text("".join(f"{name}=={package.version}\n" for name, package in packages.items()))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    show(packages.values(), next(tmp_path.glob("venv/lib/python*/site-packages")))
    return tmp_path / "venv" / "bin" / "python", listed


@pytest.fixture
def folder(root, machine, tmp_path):
    """The wheels that the script collects for that Python."""
    python = f"3.{sys.version_info.minor}"
    command = [sys.executable, root / "scripts" / "gpu_wheels.py", tmp_path / "wheels", "--have", machine[1]]
    done = subprocess.run([*command, "--python", python], capture_output=True, text=True)
    if "index cannot be reached" in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    assert "Complete:" in done.stdout
    return tmp_path / "wheels"


@pytest.fixture
def gpu_machine(root, machine, folder, tmp_path):
    """Runs that Python in a checkout without the packages' source, which come from the wheels alone."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    install = ["install", "--no-index", "--no-deps", "--target", tmp_path / "site", *folder.glob("*.whl")]
    subprocess.run([*pip, *install], check=True)
    checkout = tmp_path / "checkout"
    for part in ("benchmarks", "scripts", "tests"):
        shutil.copytree(root / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", checkout)
    unset = ("PYTHONPATH", "VIRTUAL_ENV", "SFTKIT_CACHE")
    variables = {name: value for name, value in os.environ.items() if name not in unset}
    variables |= {"PYTHONPATH": str(tmp_path / "site"), "SFTKIT_CACHE": str(tmp_path / "cache")}

    def run(*arguments):
        command = [machine[0], *map(str, arguments)]
        done = subprocess.run(command, cwd=checkout, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_the_gpu_run_passes_at_toy_size_with_the_wheels_alone(gpu_machine, tmp_path):
    for package in ("datasets", "liger_kernel", "pydantic", "sftkit", "sftkit_plugins", "trl"):
        origin = gpu_machine("-c", f"from importlib.util import find_spec; print(find_spec('{package}').origin)")
        assert Path(origin).is_relative_to(tmp_path / "site")
    gpu_machine("scripts/gpu.py", "--toy", "--budget", 3600, "--out", tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".md").exists()
    outcomes = [test["outcome"] for test in found["tests"].values()]
    assert outcomes.count("passed") > 0
    assert set(outcomes) <= {"passed", "skipped"}
    done = {name for name, entry in found["step"].items() if entry["status"] == "done"}
    assert {"toy full packed: sftkit", "toy full packed: trl", "toy lora packed: trl"} <= done
    assert {found["head"][name]["status"] for name in ("sftkit", "trl", "plain")} == {"done"}
    assert found["profile"]["status"] == "done"
