"""Commands on prepared data need no large library, and previews show rows before all data is read."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import os
import shutil
import subprocess
import sys

import pytest

from sftkit import answers
from sftkit.answers import Warnings, keep, parts_of_run, recall
from sftkit.cli.options import pipeline_from
from sftkit.errors import DataError
from sftkit.garbage import uncollected
from sftkit.models.auto_tokenizer import load_auto_tokenizer
from sftkit.run.first_rows import FirstRows
from sftkit.testing import CHATML, tiny_model, tiny_tokenizer
from sftkit.user_modules import DirectoryFinder, import_user_module

LARGE = ("torch", "datasets", "pandas", "peft", "accelerate", "scipy")
#: Runs a command, and then writes which of the large libraries it has imported to the file that is named first.
RUN_AND_LIST = """
import sys, atexit
from sftkit.cli import main
place, names = sys.argv[1], sys.argv[2].split(",")
sys.argv = ["sftkit", *sys.argv[3:]]
atexit.register(lambda: open(place, "w").write(" ".join(name for name in names if name in sys.modules)))
main()
"""


@pytest.fixture
def used(monkeypatch, tmp_path):
    """Answers are kept, in a cache of the test's own, although this process has imported transformers and more."""
    others = [each for each in sys.meta_path if not isinstance(each, DirectoryFinder)]
    monkeypatch.setattr(sys, "meta_path", others)
    monkeypatch.setattr(answers, "_environment", os.environ)
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    tiny_model().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def rows_file(path, number, end=""):
    rows = [{"prompt": f"question {at}", "completion": f" answer {at}"} for at in range(number)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end, encoding="utf-8")
    return path


@pytest.mark.slow
def test_check_and_preview_of_prepared_data_import_no_large_library(tmp_path):
    def run(*arguments):
        listed = tmp_path / "listed"
        command = [sys.executable, "-c", RUN_AND_LIST, str(listed), ",".join(LARGE), *arguments]
        printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert printed.returncode == 0, printed.stderr
        assert "leak" not in printed.stderr  # of frozen objects, as modules of triton report them at the end
        return json.loads(printed.stdout), listed.read_text().split()

    fresh, imported = run("check", "--json")
    assert set(imported) == set(LARGE)
    again, imported = run("check", "--json")
    assert imported == []
    assert [verdict["name"] for verdict in again["verdicts"]] == [verdict["name"] for verdict in fresh["verdicts"]]
    for old, new in zip(fresh["verdicts"], again["verdicts"], strict=True):
        if old["name"] == "memory":  # what is free may have changed
            old, new = old["details"]["items"], new["details"]["items"]
        if old != new:
            assert old["name"] == "disk"
    assert fresh["data"] == again["data"]
    _, imported = run("preview", "--json")
    assert imported == ["torch"]  # of which the collator makes a batch


def test_an_answer_is_recalled_in_the_same_surroundings_alone(used, monkeypatch):
    keep("a question", {"a": 1}, [1, 2])
    assert recall("a question", {"a": 1}) == [1, 2]
    assert recall("a question", {"a": 2}) is recall("another question", {"a": 1}) is None
    monkeypatch.setenv("COLUMNS", "79")
    assert recall("a question", {"a": 1}) == [1, 2]
    monkeypatch.setenv("PYTORCH_SOMETHING", "1")
    assert recall("a question", {"a": 1}) is None


@pytest.mark.parametrize("changed", ["describe_machine", "_packages", "_code"])
def test_no_answer_of_another_machine_installation_or_version_is_recalled(used, monkeypatch, changed):
    keep("a question", {}, "yes")
    monkeypatch.setattr(answers, changed, lambda *_: ["other"])
    assert recall("a question", {}) is None


def test_an_answer_is_not_kept_for_parts_that_other_processes_lack(used):
    keep("a question", {"function": len}, "yes")
    assert recall("a question", {"function": len}) is None


def test_a_damaged_answer_is_not_recalled(used):
    keep("a question", {}, "yes")
    (file,) = answers.cache_directory().glob("answers/*.json")
    file.write_text("{", encoding="utf-8")
    assert recall("a question", {}) is None


def test_nothing_is_kept_without_a_cache_that_can_be_written(used, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "file"))
    keep("a question", {}, "yes")
    assert recall("a question", {}) is None


def test_no_answer_is_used_where_transformers_was_imported_before(used, monkeypatch):
    keep("a question", {}, "yes")
    monkeypatch.setitem(sys.modules, "transformers", sys)
    with answers.using_answers():
        assert recall("a question", {}) is None


MINE = """
from dataclasses import dataclass
from sftkit import Plugin

@dataclass(frozen=True, kw_only=True)
class Mine(Plugin):
    "Mine."
"""


def test_no_answer_is_used_where_a_plugin_of_others_is_selected(used, model, monkeypatch, tmp_path):
    keep("a question", {}, "yes")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "installed_of_others.py").write_text(MINE, encoding="utf-8")
    data = rows_file(tmp_path / "train.jsonl", 3)
    pipeline_from([f"model={model}", f"data={data}"], ["installed_of_others:Mine"]).stages()
    assert recall("a question", {}) is None


def test_no_answer_is_used_where_a_module_of_the_user_is_imported(used, monkeypatch, tmp_path):
    keep("a question", {}, "yes")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "module_of_the_user.py").touch()
    import_user_module("module_of_the_user")
    assert recall("a question", {}) is None


def test_the_class_of_a_tokenizer_is_chosen_again_when_a_file_of_it_is_replaced(used, tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "a" / "model")
    chosen = []
    monkeypatch.setattr("sftkit.models.auto_tokenizer.keep", lambda *kept: (chosen.append(kept[-1]), keep(*kept)))
    for _ in range(2):
        load_auto_tokenizer(str(tmp_path / "a" / "model"), None)
    assert len(chosen) == 1
    file = tmp_path / "a" / "model" / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    load_auto_tokenizer(str(tmp_path / "a" / "model"), None)
    assert len(chosen) == 2


def test_what_a_library_adds_to_the_environment_changes_no_key(monkeypatch, tmp_path):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    monkeypatch.setattr(sys, "meta_path", [each for each in sys.meta_path if not isinstance(each, DirectoryFinder)])
    with answers.using_answers():
        monkeypatch.setenv("SET_BY_A_LIBRARY", "1")
        keep("a question", {}, "yes")
    monkeypatch.delenv("SET_BY_A_LIBRARY")
    with answers.using_answers():
        assert recall("a question", {}) == "yes"


def test_warnings_of_several_loggers_are_noted():
    with Warnings("sftkit", "transformers") as warned:
        logging.getLogger("transformers.models").warning("odd")
    assert warned.any


def test_data_removed_after_it_was_prepared_is_an_error_with_a_fix(model, tmp_path, monkeypatch):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))
    data = rows_file(tmp_path / "train.jsonl", 3)
    prepared = pipeline_from([f"model={model}", "model.init=random", f"data={data}"]).prepare()
    shutil.rmtree(tmp_path / "cache")
    for use in (lambda: prepared.data.train, lambda: prepared.data.rows("train", 0, 1)):
        with pytest.raises(DataError, match=r"removed before it was used.*run the command again"):
            use()


def run_of(*arguments):
    stages = pipeline_from([*arguments]).stages()
    return parts_of_run(stages.config, stages.plugins)


def test_only_what_built_in_plugins_decide_is_kept(model, tmp_path):
    data = rows_file(tmp_path / "train.jsonl", 3)
    named = (f"model={model}", "model.init=random", f"data={data}")
    assert json.dumps(run_of(*named), default=str) == json.dumps(run_of(*named, "train.output_dir=x"), default=str)
    assert run_of(*named) != run_of(*named, "train.learning_rate=1e-3")
    assert run_of(*named, "data.cache=false") is run_of(*named, "model.trust_remote_code=true") is None
    stages = pipeline_from([*named]).stages()
    first, *others = stages.plugins.selected
    foreign = dataclasses.replace(first, distribution="of-someone-else")
    assert parts_of_run(stages.config, dataclasses.replace(stages.plugins, selected=(foreign, *others))) is None


def test_rows_are_shown_before_the_end_of_the_data_is_read(model, tmp_path):
    shown = []
    data = rows_file(tmp_path / "train.jsonl", 30_000, end="{this line is broken\n")
    pipeline = pipeline_from([f"model={model}", "model.init=random", f"data={data}"])
    with pytest.raises(DataError, match="30001"):
        pipeline.prepare(FirstRows("train", 1, 2, lambda rows, final: shown.append((rows, final))))
    ((rows, final),) = shown
    assert final
    assert [row.number for row in rows] == [2, 3]
    assert "question 1" in "".join(piece.text for piece in rows[0].pieces)


def test_preview_prints_the_first_rows_once(model, tmp_path, in_process):
    data = rows_file(tmp_path / "train.jsonl", 20)
    arguments = ("preview", f"model={model}", f"data={data}", "--rows", 2)
    code, first = in_process(*arguments)
    again = in_process(*arguments)
    assert code == 0
    assert again == (0, first)
    assert first.count("row 1 ") == first.count("row 2 ") == 1


def test_documents_to_be_packed_are_shown_only_while_the_data_is_new(model, tmp_path):
    data = rows_file(tmp_path / "train.jsonl", 20)
    given = [f"model={model}", "model.init=random", f"data={data}"]
    shown = []
    wanted = FirstRows("train", 0, 2, lambda rows, final: shown.append(final))
    pipeline_from(given, ["packing"]).prepare(wanted)
    assert shown == [False]


def test_there_are_no_more_first_rows_than_rows(model, tmp_path):
    data = rows_file(tmp_path / "train.jsonl", 3)
    shown = []
    pipeline = pipeline_from([f"model={model}", "model.init=random", f"data={data}"])
    prepared = pipeline.prepare(FirstRows("train", 1, 9, lambda rows, final: shown.extend(rows)))
    assert [row.number for row in shown] == [2, 3]
    assert len(prepared.data.rows("train", 1, 9)) == 2


def test_libraries_are_imported_without_collections():
    before = gc.get_freeze_count()
    with uncollected():
        assert not gc.isenabled()
    assert (gc.isenabled() and gc.get_freeze_count() == 0) or before
    gc.disable()
    try:
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
