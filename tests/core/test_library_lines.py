"""Lines of libraries that a user cannot act on, and repeats by other processes, do not reach the terminal."""

from __future__ import annotations

import logging
import warnings

import pytest

from sftkit.cli.libraries import FOR_DEVELOPERS, LINES, quiet_libraries
from sftkit.cli.process import LineHandler, leave_lines_to_main_process, log_levels
from sftkit.console import Output
from sftkit.errors import OF_ONE_PROCESS

LIBRARY = "/env/lib/python3.11/site-packages/peft/peft_model.py"


@pytest.fixture
def root_level():
    """Sets the level of the root logger, which -v lowers."""
    root, show = logging.getLogger(), warnings.showwarning
    before = root.level
    yield root.setLevel
    root.setLevel(before)
    warnings.showwarning = show


@pytest.fixture
def given(root_level, monkeypatch):
    """The warnings that are shown after `quiet_libraries`, of those that a function is called with."""

    def shown(category, filename, level=logging.WARNING):
        seen = []
        monkeypatch.setattr(warnings, "showwarning", lambda *arguments, **_: seen.append(arguments))
        root_level(level)
        quiet_libraries()
        warnings.showwarning("is deprecated", category, filename, 1)
        return bool(seen)

    return shown


@pytest.mark.parametrize("category", FOR_DEVELOPERS)
def test_deprecations_in_libraries_are_only_shown_if_more_is_asked_for(given, category):
    assert not given(category, LIBRARY)
    assert given(category, LIBRARY, level=logging.INFO)


def test_other_warnings_and_those_of_the_users_modules_are_shown(given):
    assert given(UserWarning, LIBRARY)
    assert given(FutureWarning, "/home/me/my_plugin.py")


@pytest.mark.parametrize(("name", "begins"), LINES)
def test_a_known_line_is_dropped_and_others_of_its_logger_are_not(root_level, name, begins, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    root_level(logging.WARNING)
    quiet_libraries()
    logging.getLogger(name).warning("%s: no module", begins)
    logging.getLogger(name).warning("something else")
    assert {record.getMessage() for record in caplog.records} == {"something else"}  # a library may add a handler


def test_other_processes_log_only_what_concerns_them_alone(monkeypatch, caplog):
    monkeypatch.setenv("RANK", "1")
    with log_levels(Output()):
        leave_lines_to_main_process()
        logging.getLogger("sftkit").warning("4 rows were cut")
        logging.getLogger(OF_ONE_PROCESS).warning("out of memory")
    assert [LineHandler().format(record) for record in caplog.records] == ["process 1: out of memory"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [["-p", "peft"], ["-p", "packing"], ["train.save_strategy=steps"]])
def test_standard_error_of_a_run_has_only_lines_of_sftkit(cli, tmp_path, options):
    settings = ["train.max_steps=2", "train.warmup_steps=0", "train.save_steps=1"]
    done = cli("run", "-o", "run", *options, *settings, cwd=tmp_path)
    own = ("peft: LoRA, ", "packing: ")
    assert [line for line in done.stderr.splitlines() if not line.startswith(own)] == []
