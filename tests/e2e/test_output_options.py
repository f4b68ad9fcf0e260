"""Options that every command has, whoever provides it: -q, -v, --log-level, and --json where there are results."""

from __future__ import annotations

import json
import logging
import os
import sys

import pytest
import typer

from sftkit.cli import app
from sftkit.cli.commands import _as_command, discover_commands
from sftkit.cli.common import add_common_options
from sftkit.console import output

#: The embedded model and data, as little of them as trains.
SMALL = (
    "-p",
    "no:samples",
    "-p",
    "no:checks",
    "data.eval=null",
    "evaluate=null",
    "train.eval_on_start=false",
    "data.max_length=64",
)
COMMON = ["-q", "-v", "--log-level", "-h"]


@pytest.fixture
def printed(monkeypatch, capsys):
    """The command line in this process: exit code, standard output and standard error."""
    from sftkit.cli import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sftkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    return run


def names(command):
    return [name for param in command.params for name in (*param.opts, *param.secondary_opts)]


@pytest.fixture(scope="module")
def group():
    return typer.main.get_command(app)


def commands(group):
    """Every command, also those of groups, by its name; broken ones are found by other tests."""
    found = {}
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        found[name] = command
        found |= {f"{name} {nested}": item for nested, item in getattr(command, "commands", {}).items()}
    return {name: command for name, command in found.items() if not (command.help or "").startswith("Broken")}


def test_every_command_has_the_common_options_and_shows_them(in_process, group):
    known = commands(group)
    assert {"run", "plugins", "schema", "cache", "cache list", "check", "preview"} <= known.keys()
    for name, command in known.items():
        found = names(command)
        assert len(found) == len({*found}), f"{name} has an option twice"
        assert {"--log-level"} <= {*found}, name
        code, shown = in_process(*name.split(), "--help")
        assert code == 0, name
        assert all(f"{option} " in shown or f"{option}," in shown for option in COMMON), name


@pytest.mark.parametrize("width", [60, 80, 140])
def test_help_fits_and_every_command_explains_its_options(in_process, group, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for name, command in {"": group, **commands(group)}.items():
        if name:
            assert command.help, name
        _, shown = in_process(*name.split(), "--help")
        lines = [line for line in shown.splitlines() if not line.startswith("  ") or "  " in line.strip()]
        assert max(map(len, lines)) <= max(width, 100), name


def test_commands_that_have_results_print_them_as_json(group):
    for name in ("run", "plugins", "schema", "check", "preview", "cache list", "cache clear"):
        assert "--json" in names(commands(group)[name]), name


@pytest.mark.parametrize(
    "arguments", [("plugins",), ("plugins", "NEFTune"), ("schema",), ("cache", "list"), ("cache", "-q", "list", "-q")]
)
def test_json_is_one_object_and_nothing_else(in_process, arguments):
    code, shown = in_process(*arguments, "--json")
    assert code == 0
    assert isinstance(json.loads(shown), dict)


@pytest.mark.parametrize("arguments", [("run", "train.max_stesp=1"), ("plugins", "pakcing"), ("check", "--ouput", "x")])
def test_errors_are_json_too(printed, arguments):
    code, out, err = printed(*arguments, "--json")
    assert code == 2
    (problem,) = json.loads(out)["error"]
    assert problem.keys() == {"what", "where", "fix"}
    assert all(problem.values())
    assert "error: " in err


def test_a_run_prints_its_result_as_json_and_all_else_elsewhere(printed, tmp_path):
    code, out, err = printed("run", *SMALL, "-o", tmp_path, "train.max_steps=1", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["status"], found["directory"]) == ("trained", str(tmp_path))
    assert found["metrics"]["train_loss"] > 0
    assert "loading the model" in err


def test_a_quiet_run_prints_its_result_alone(printed, tmp_path):
    code, out, _ = printed("run", *SMALL, "-o", tmp_path, "train.max_steps=1", "-q")
    assert code == 0
    assert out.splitlines()[0].strip() == "Results"
    assert out.splitlines()[-1] == f"saved to {tmp_path}"


def test_a_run_names_the_commands_to_try_next(printed, tmp_path, monkeypatch):
    monkeypatch.setattr("sftkit.cli.run.NEXT", ("check", "no-such-command"))
    _, out, _ = printed("run", *SMALL, "-o", tmp_path, "train.max_steps=1")
    assert out.splitlines()[-1] == f"next: sftkit check {tmp_path}"


def third_party(silent: bool = typer.Option(False, "--silent", "-q", help="Its own -q.")):
    """A command with an option of the name -q."""


@pytest.mark.parametrize(
    ("arguments", "own", "library", "variable"),
    [
        ((), logging.INFO, logging.WARNING, None),
        (("--quiet",), logging.ERROR, logging.ERROR, "error"),
        (("-v",), logging.DEBUG, logging.INFO, "info"),
        (("-v", "--log-level", "WARNING"), logging.WARNING, logging.WARNING, "warning"),
    ],
)
def test_levels_apply_while_a_command_runs(monkeypatch, arguments, own, library, variable):
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    seen = []

    def noted():
        seen.append((output().own_level, output().library_level, os.environ.get("TRANSFORMERS_VERBOSITY")))

    before = logging.getLogger("sftkit").level
    command = add_common_options(_as_command("noted", noted))
    command.main(list(arguments), standalone_mode=False)
    assert seen == [(own, library, variable)]
    assert logging.getLogger("sftkit").level == before
    assert "TRANSFORMERS_VERBOSITY" not in os.environ


def test_quiet_and_verbose_exclude_each_other(in_process):
    code, shown = in_process("plugins", "-q", "-v")
    assert code == 2
    assert "give either --quiet or --verbose" in shown


def test_a_command_keeps_an_option_that_it_has_itself():
    command = add_common_options(_as_command("its-name", third_party))
    found = names(command)
    assert found.count("-q") == 1
    assert "--quiet" in found


def test_the_command_line_alone_shows_what_to_do_first(in_process):
    code, shown = in_process()
    assert code == 0
    assert "sftkit run" in shown
    assert all(name in shown for name in ("run", "plugins", *discover_commands()))
