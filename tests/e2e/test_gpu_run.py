"""The GPU run as a process, at toy size on the CPU: parts, kept results, and what a killed run leaves."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

TESTS = """
import pytest

@pytest.mark.gpu
@pytest.mark.parametrize("number", [1, 2])
def test_passes(number, record_property):
    record_property("error", number)

@pytest.mark.gpu
@pytest.mark.xdist_group("one@process")
def test_fails():
    assert 1 == 2, "they differ"

@pytest.mark.gpu
def test_is_skipped():
    pytest.skip("needs another card")

def test_is_of_no_gpu():
    assert False
"""
WAITS = """
import threading
import pytest

@pytest.mark.gpu
def test_never_ends():
    threading.Event().wait()
"""


@pytest.fixture
def checkout(root, tmp_path):
    """A checkout with the run and with a few tests of its own, so that each run is short."""
    place = tmp_path / "checkout"
    (place / "scripts").mkdir(parents=True)
    shutil.copy(root / "scripts" / "gpu.py", place / "scripts")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "benchmarks" / "gpu", place / "benchmarks" / "gpu", ignore=ignored)
    (place / "tests" / "gpu").mkdir(parents=True)
    (place / "tests" / "gpu" / "test_some.py").write_text(TESTS)
    (place / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    return place


@pytest.fixture
def correctness(root, monkeypatch):
    """The module that runs the tests, with the variables that the script sets."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    monkeypatch.setenv("PYTHONPATH", str(root / "benchmarks"))
    module = importlib.import_module("gpu.correctness")
    monkeypatch.setattr(module, "WORKERS", 1)
    return module


def script(checkout, *flags, **options):
    command = [sys.executable, str(checkout / "scripts" / "gpu.py"), *map(str, flags)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def results(directory):
    """What is written, or None; both files are there or neither."""
    paths = list(directory.glob("gpu-toy-cpu-*.json"))
    return json.loads(paths[0].read_text()) if paths else None


def statuses(data):
    return {name: value["status"] for name, value in data["step"].items()}


def wait_for(process, reached, directory):
    """Waits until results are there that satisfy a condition, while the run goes on."""
    while process.poll() is None:
        if (data := results(directory)) is not None and reached(data):
            return
        time.sleep(0.05)
    raise AssertionError(f"the run has ended:\n{process.stdout.read()}")


def any_done(data):
    return "done" in statuses(data).values()


def test_without_a_gpu_the_error_names_the_toy_mode(root):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    process = script(root, env=environment)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "no CUDA GPU is visible here; --toy" in output


def test_outcomes_are_those_of_the_marked_tests_with_their_reasons(correctness, checkout, tmp_path):
    news = []
    found = correctness.run(checkout / "tests" / "gpu", tmp_path, 300, True, [], news.append)
    short = {name.rpartition("::")[2]: test for name, test in found.items()}
    outcomes = {name: test["outcome"] for name, test in short.items()}
    assert outcomes == {
        "test_passes[1]": "passed",
        "test_passes[2]": "passed",
        "test_fails": "failed",
        "test_is_skipped": "skipped",
    }
    assert short["test_passes[2]"]["values"] == {"error": 2}
    assert short["test_fails"]["reason"] == "assert 1 == 2"
    assert any("they differ" in line for line in short["test_fails"]["trace"])
    assert short["test_is_skipped"]["reason"] == "needs another card"
    assert news


@pytest.mark.slow
def test_tests_that_passed_before_are_left_out_and_others_are_not(correctness, checkout, tmp_path):
    passed = ["tests/gpu/test_some.py::test_passes[1]", "tests/gpu/test_some.py::test_was_deleted"]
    found = correctness.run(checkout / "tests" / "gpu", tmp_path, 300, True, passed, lambda _: None)
    assert set(found) == {f"tests/gpu/test_some.py::test_{name}" for name in ("passes[2]", "fails", "is_skipped")}


def test_outcomes_are_kept_when_the_tests_are_cut_off(correctness, checkout, tmp_path):
    (checkout / "tests" / "gpu" / "test_waits.py").write_text(WAITS)

    class CutError(Exception):
        pass

    def news(found):
        if any(test["outcome"] == "failed" for test in found.values()):
            raise CutError

    with pytest.raises(CutError):
        correctness.run(checkout / "tests" / "gpu", tmp_path, 300, True, [], news)
    found = correctness.outcomes(tmp_path / "tests.jsonl")
    assert found["tests/gpu/test_waits.py::test_never_ends"]["outcome"] == "not reached"
    assert found["tests/gpu/test_some.py::test_fails"]["outcome"] == "failed"


@pytest.mark.slow
def test_a_file_that_cannot_be_collected_is_an_error_with_its_reason(correctness, checkout, tmp_path):
    (checkout / "tests" / "gpu" / "test_some.py").write_text("import nothing_of_this_name\n")
    found = correctness.run(checkout / "tests" / "gpu", tmp_path, 300, True, [], lambda _: None)
    assert found["tests/gpu/test_some.py"]["outcome"] == "error"
    assert "nothing_of_this_name" in found["tests/gpu/test_some.py"]["reason"]


def test_a_pytest_that_cannot_start_is_an_error(correctness, checkout, tmp_path):
    (checkout / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    found = correctness.run(checkout / "tests" / "gpu", tmp_path, 300, True, [], lambda _: None)
    assert found["pytest"]["outcome"] == "error"
    assert any("--no-such-option" in line for line in found["pytest"]["trace"])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_leaves_its_results_and_another_completes_them(checkout, tmp_path, number):
    (checkout / "tests" / "gpu" / "test_some.py").write_text(TESTS.replace("1 == 2", "1 == 1"))
    out = tmp_path / "out"
    process = script(checkout, "--toy", "--out", out)
    wait_for(process, any_done, out)
    process.send_signal(number)
    process.communicate(timeout=100)
    assert process.returncode == (143 if number == signal.SIGTERM else -number)
    before = results(out)
    assert {"done", "not reached"} <= set(statuses(before).values())
    assert len(before["tests"]) == 4
    (page,) = out.glob("*.md")
    assert "not reached" in page.read_text()

    again = script(checkout, "--toy", "--only", "failed", "--out", out)
    output, _ = again.communicate(timeout=1000)
    assert again.returncode == 0, output
    after = results(out)
    assert set(statuses(after).values()) == {"done", "missing"}
    assert len(after["runs"]) == 2
    kept = [name for name, value in after["step"].items() if value["status"] == "done" and value["run"] == 0]
    for name in kept:
        assert after["step"][name]["losses"] == before["step"][name]["losses"]
    assert {test["run"] for name, test in after["tests"].items() if "passes" in name} == {0}
    assert after["profile"]["status"] == "done"


@pytest.mark.slow
def test_a_failed_setting_is_reported_with_its_traceback_and_the_others_go_on(checkout, tmp_path):
    (checkout / "tests" / "gpu" / "test_some.py").write_text(TESTS)
    code = checkout / "benchmarks" / "gpu" / "runs.py"
    line = "    watch.rows, watch.attention ="
    broken = code.read_text().replace(line, f'    raise RuntimeError("broken")\n{line}')
    assert broken != code.read_text()
    code.write_text(broken)
    code = checkout / "benchmarks" / "gpu" / "head.py"
    code.write_text(code.read_text().replace("def missing(", "def missed("))  # an error outside of any measurement
    process = script(checkout, "--toy", "--out", tmp_path / "out")
    output, _ = process.communicate(timeout=1000)
    assert process.returncode == 1
    data = results(tmp_path / "out")
    loop = data["step"]["toy full packed: plain loop"]
    assert (loop["status"], loop["reason"]) == ("failed", "RuntimeError: broken")
    assert any("in run_loop" in line for line in loop["trace"])
    assert [name for name, status in statuses(data).items() if status == "failed"] == ["toy full packed: plain loop"]
    assert data["runs"][0]["parts"]["head"]["reason"].startswith("AttributeError")
    assert data["profile"]["status"] == "done"
    assert "open, toy full packed: plain loop: failed: RuntimeError: broken" in output
    assert "test_fails: failed: assert 1 == 2" in output


@pytest.mark.slow
def test_the_whole_run_passes_at_toy_size_with_all_cases(root, tmp_path):
    process = script(root, "--toy", "--all", "--budget", 1500, "--out", tmp_path)
    output, _ = process.communicate(timeout=1700)
    assert process.returncode == 0, output
    data = results(tmp_path)
    assert set(statuses(data).values()) == {"done", "missing"}
    assert {value["status"] for value in data["head"].values()} == {"done", "missing"}
    assert data["tests"]
    assert all(target["met"] is None for target in data["targets"])
    (page,) = tmp_path.glob("*.md")
    text = page.read_text()
    for part in ("## Targets", "## Correctness", "### toy lora packed", "## The loss head alone", "## Profile"):
        assert part in text
    assert "tries the code and measures nothing" in text
