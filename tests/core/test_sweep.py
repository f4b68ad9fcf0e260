"""The command sweep: what varies, its runs, and how they are compared."""

from __future__ import annotations

import io
import json

import pytest

from sftkit import Pipeline
from sftkit.errors import ConfigError, SftkitError
from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit_commands.sweep.process import Processes
from sftkit_commands.sweep.record import SweepRun
from sftkit_commands.sweep.search import Search
from sftkit_commands.sweep.space import Range, read_space, run_names, short_keys


def test_values_are_separated_by_commas_outside_of_quotes_and_brackets():
    space = read_space(["a.yaml", "train.seed=1", "a=1,2", "b=[1, 2],[3]", 'c="x, y",z'], trials=False)
    assert space.fixed == ["a.yaml", "train.seed=1"]
    assert space.values == {"a": ["1", "2"], "b": ["[1, 2]", "[3]"], "c": ['"x, y"', "z"]}
    assert len(space.grid()) == 8
    assert space.grid()[1] == {"a": "1", "b": "[1, 2]", "c": "z"}


def test_ranges_have_whole_numbers_if_both_ends_are():
    space = read_space(["r=4..64", "lr=1e-6..1e-4:log", "x=a,b"], trials=True)
    assert space.ranges == {"r": Range(4, 64), "lr": Range(1e-6, 1e-4, log=True)}
    assert [each.whole for each in space.ranges.values()] == [True, False]
    assert {"x": "a", "r": "64", "lr": "1e-06"} in space.corners()


@pytest.mark.parametrize(
    ("argument", "trials", "what"),
    [
        ("a=1", False, "nothing varies"),
        ("a=1,,2", False, "empty or given twice"),
        ("a=1,1", False, "empty or given twice"),
        ("a=1..2", False, "a: 1..2 is a range -> set the number of runs with --trials"),
        ("a=2..1", True, "has no numbers"),
        ("a=0..1:log", True, "has no numbers"),
        ("a={b: 1},{b: 2}", True, "mappings cannot be tried"),
    ],
)
def test_what_cannot_vary_is_an_error(argument, trials, what):
    with pytest.raises(ConfigError, match=what):
        read_space([argument], trials)


def test_runs_have_readable_names_that_differ():
    rates = [{"train.learning_rate": text, "plugins.peft.r": "8"} for text in ("1e-5", "2e-5")]
    assert run_names(rates) == ["learning_rate-1e-5,r-8", "learning_rate-2e-5,r-8"]
    assert run_names([{"data": "a/x.jsonl"}, {"data": "b/x.jsonl"}]) == ["data-x.jsonl", "data-x.jsonl-2"]
    assert short_keys(["plugins.a.r", "plugins.b.r"]) == {"plugins.a.r": "a.r", "plugins.b.r": "b.r"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A configuration of one step."""
    path = tmp_path_factory.mktemp("sweep")
    tiny_model().save_pretrained(path / "model")
    tiny_tokenizer().save_pretrained(path / "model")
    for first, name in enumerate(("train", "eval")):
        rows = [{"prompt": f"What is {number}{first}?", "completion": " A number."} for number in range(4)]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (path / "sft.yaml").write_text(
        "model: model\ndata: {train: train.jsonl, eval: eval.jsonl}\n"
        "train: {max_steps: 1, save_strategy: 'no', per_device_train_batch_size: 2}\n",
        "utf-8",
    )
    return path / "sft.yaml"


@pytest.fixture
def started(monkeypatch):
    """The configurations of the runs that were started, which run in this process."""
    files = []

    def run(self, config, directory, secrets, quiet):
        files.append(config)
        try:
            Pipeline(config=config, train={"output_dir": str(directory)}, resume="auto").run()
        except SftkitError as error:
            return error.exit_code
        return 0

    monkeypatch.setattr(Processes, "run", run)
    return files


def sweep_json(directory):
    return json.loads((directory / "sweep.json").read_text(encoding="utf-8"))


def test_every_combination_is_run_and_a_failing_one_does_not_end_the_sweep(in_process, started, config, tmp_path):
    grid = ("train.learning_rate=1e-4,5e-2", "data.max_length=64,2", "-o", tmp_path / "s")
    code, text = in_process("sweep", config, *grid)
    assert (code, len(started)) == (3, 4)
    made = sweep_json(tmp_path / "s")
    assert [run["status"] for run in made["runs"]] == ["done", "done", "failed", "failed"]
    best, second = made["runs"][:2]
    assert best["metrics"]["eval_loss"] < second["metrics"]["eval_loss"]
    assert {run["parameters"]["train.learning_rate"] for run in (best, second)} == {"1e-4", "5e-2"}
    assert "4 runs in" in text
    assert best["directory"].endswith("learning_rate-" + best["parameters"]["train.learning_rate"] + ",max_length-64")
    assert f"best: {best['directory']}\n" in text
    assert f"sftkit report {tmp_path}/s/*/" in text

    code, text = in_process("sweep", config, *grid)
    assert (code, "holds a sweep already" in text) == (2, True)
    code, text = in_process("sweep", config, *grid, "--resume", "--json")
    assert (code, len(started)) == (3, 6)  # only those that failed
    assert [run["status"] for run in sweep_json(tmp_path / "s")["runs"]] == ["done", "done", "failed", "failed"]


@pytest.mark.slow
def test_a_changed_configuration_is_refused_on_resume(in_process, started, config, tmp_path):
    grid = ("train.learning_rate=1e-4,5e-2", "-o", tmp_path / "s")
    assert in_process("sweep", config, *grid, "--maximize")[0] == 0
    best, second = sweep_json(tmp_path / "s")["runs"]
    assert best["metrics"]["eval_loss"] > second["metrics"]["eval_loss"]
    code, text = in_process("sweep", config, *grid, "train.seed=9", "--resume")
    assert (code, "train.seed: changed since the run began: 42 -> 9" in text) == (2, True)


def test_every_configuration_is_checked_before_the_first_run(in_process, started, config, tmp_path):
    code, text = in_process("sweep", config, "train.max_steps=1,many", "model.dtype=int3", "-o", tmp_path / "s")
    assert (code, started, (tmp_path / "s").exists()) == (2, [], False)
    assert "train.max_steps: 'many' is of the wrong type" in text
    assert text.count("model.dtype: 'int3'") == 1
    code, text = in_process("sweep", config, "train.max_steps=1,many")
    assert "train.max_steps (with train.max_steps=many): 'many' is of the wrong type" in text


def test_a_dry_run_lists_the_runs_and_starts_none(in_process, started, config, tmp_path):
    code, text = in_process("sweep", config, "train.seed=1,2,3", "-o", tmp_path / "s", "--dry-run", "--json")
    listed = json.loads(text)
    assert (code, started, (tmp_path / "s").exists()) == (0, [], False)
    assert [(run["name"], run["status"]) for run in listed["runs"]] == [(f"seed-{n}", "waiting") for n in (1, 2, 3)]


def test_a_metric_that_no_run_has_is_an_error(in_process, started, config, tmp_path):
    code, text = in_process("sweep", config, "train.seed=1,2", "data.eval=null", "--metric", "eval_loss")
    assert (code, "no run has eval_loss, since there is no evaluation data" in text) == (2, True)
    code, text = in_process("sweep", config, "train.seed=1,2", "--metric", "train_runtime", "--dry-run")
    assert (code, "add --maximize or --minimize" in text) == (2, True)


def test_trials_are_run_and_compared(in_process, started, config, tmp_path):
    space = ("train.learning_rate=1e-4..1e-1:log", "-o", tmp_path / "s")
    assert in_process("sweep", config, *space, "--trials", "1", "--json")[0] == 0
    code, _ = in_process("sweep", config, *space, "--trials", "2", "--resume", "--json")
    made = sweep_json(tmp_path / "s")
    assert (code, len(started), len(made["runs"])) == (0, 2, 2)
    assert all(1e-4 <= float(run["parameters"]["train.learning_rate"]) <= 1e-1 for run in made["runs"])
    code, text = in_process("sweep", config, *space, "--trials", "3", "--resume", "--maximize")
    assert (code, "the trials so far were made with another direction of the metric" in text) == (2, True)


def choices(directory, stops=()):
    """The choices of six trials whose metric is x; the search begins again after those in ``stops``."""
    space, chosen = read_space(["x=0.0..1.0", "n=1..9", "c=a,b"], trials=True), {}
    for last in (*stops, 6):
        for number, parameters in Search(space, directory, maximize=False, seed=3).trials(6):
            chosen[number] = parameters
            if number + 1 == last < 6:
                break  # it was interrupted, and has no outcome
            run = SweepRun("", parameters, "done", {"loss": float(parameters["x"])})
            Search(space, directory, maximize=False, seed=3).report(number, run, "loss")
    return chosen


def test_an_interrupted_search_makes_the_choices_of_an_undisturbed_one(tmp_path):
    undisturbed = choices(tmp_path / "one")
    assert choices(tmp_path / "two", stops=(2, 5)) == undisturbed
    assert len({parameters["x"] for parameters in undisturbed.values()}) == 6


@pytest.mark.slow
def test_ctrl_c_ends_the_run_in_order_and_the_sweep_continues_with_resume(config, tmp_path):
    import signal
    import subprocess
    import sys
    import time

    arguments = ["train.learning_rate=1e-4,1e-3", "train.max_steps=400", "train.save_strategy=steps"]
    command = [sys.executable, "-m", "sftkit", "sweep", str(config), *arguments, "train.save_steps=5", "-o", "s"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while process.poll() is None and not list(tmp_path.glob("s/*/checkpoint-*")):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "0 of 2 runs are done; continue with: sftkit sweep" in text
    assert [run["status"] for run in sweep_json(tmp_path / "s")["runs"]] == ["interrupted", "waiting"]
    done = subprocess.run([*command, "--resume"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert (done.returncode, "resuming from" in done.stderr) == (0, True)
    assert [run["status"] for run in sweep_json(tmp_path / "s")["runs"]] == ["done", "done"]


def test_a_run_of_a_sweep_with_json_writes_where_no_stream_of_python_is_a_file(monkeypatch, tmp_path):
    from sftkit_commands.sweep.process import Processes

    monkeypatch.setattr("sys.stderr", io.StringIO())
    monkeypatch.setattr("sys.executable", "true")
    assert Processes().run(tmp_path / "sft.yaml", tmp_path / "run", {}, quiet=True) == 0
