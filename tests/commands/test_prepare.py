"""Data that `sftkit prepare` has written is what a run would have prepared itself."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import fsspec
import pytest

from sftkit import Pipeline
from sftkit.api import Pool, prepare_to
from sftkit.data import cache
from sftkit.data.jobs import Job
from sftkit.data.shards import MANIFEST
from sftkit.data.threads import SameThread
from sftkit.errors import ConfigError, DataError, RunError
from sftkit.testing import CHATML, tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sftkit.data.batches.BATCH", 20)  # several jobs
    monkeypatch.setattr("sftkit.data.shards.SHARD", 4000)  # several shards


def write(path, number, name="question"):
    rows = [{"prompt": f"{name} {n}? " * (1 + n % 5), "completion": f"yes {n}"} for n in range(number)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pipeline(tmp_path, *, tokenizer=None, plugins=(), arguments=None, **data):
    data = {"train": str(tmp_path / "train.jsonl"), "max_length": 64, **data}
    if not Path(data["train"]).exists():
        write(Path(data["train"]), 130)
    train = {"output_dir": str(tmp_path / "run"), "use_cpu": True, "max_steps": 2, **(arguments or {})}
    return Pipeline(
        model=tiny_model(), tokenizer=tokenizer or tiny_tokenizer(), data=data, plugins=plugins, train=train
    )


def contents(directory):
    files = {path.name: path.read_bytes() for path in Path(directory).iterdir() if path.name != MANIFEST}
    manifest = json.loads((Path(directory) / MANIFEST).read_text())
    return files, {key: value for key, value in manifest.items() if key != "created"}


def as_lists(data):
    return {name: rows.with_format(None).to_list() for name, rows in data.splits.items()}


def assert_equal(one, other):
    assert as_lists(one) == as_lists(other)
    assert one.summary() == other.summary()
    assert one.columns == other.columns
    assert {name: stats.as_dict() for name, stats in one.stats.items()} == {
        name: stats.as_dict() for name, stats in other.stats.items()
    }
    assert {name: rows.to_dict() for name, rows in one.sources.items()} == {
        name: rows.to_dict() for name, rows in other.sources.items()
    }


CASES = {
    "plain": {},
    "held out": {"eval": 0.2},
    "packed": {"plugins": ["packing"], "eval": 0.1},
    "wrapped": {"plugins": ["packing:strategy=wrapped,concat_token_id=2"]},
    "cut": {"max_length": 24},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_has_the_same_data_as_if_it_had_prepared_it(tmp_path, monkeypatch, case):
    options = CASES[case]
    prepare_to(pipeline(tmp_path, **options), str(tmp_path / "prepared"), 2)
    shutil.rmtree(tmp_path / "cache")
    own = pipeline(tmp_path, **options).prepare().data
    mapped = pipeline(tmp_path, prepared=str(tmp_path / "prepared"), **options).prepare().data
    assert mapped.cached == mapped.splits.keys()
    assert_equal(mapped, own)


def test_mixtures_keep_their_sources(tmp_path):
    mix = {write(tmp_path / "a.jsonl", 90): 2.0, write(tmp_path / "b.jsonl", 45, "other"): 1.0}

    def run(**more):
        data = {"max_length": 64, "mix": mix, **more}
        train = {"output_dir": str(tmp_path / "run"), "use_cpu": True}
        return Pipeline(model=tiny_model(), tokenizer=tiny_tokenizer(), data=data, train=train)

    prepare_to(run(), str(tmp_path / "prepared"), 2)
    shutil.rmtree(tmp_path / "cache")
    mapped = run(prepared=str(tmp_path / "prepared")).prepare().data
    assert set(mapped.described["train"]["sources"]) == {"a", "b"}
    assert_equal(mapped, run().prepare().data)


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path):
    found = []
    for workers in (1, 2, 3):
        prepare_to(pipeline(tmp_path, eval=0.1), str(tmp_path / str(workers)), workers)
        shutil.rmtree(tmp_path / "cache")
        found.append(contents(tmp_path / str(workers)))
    assert found[0] == found[1] == found[2]
    assert sum(name.startswith("train-0") for name in found[0][0]) > 1


def test_one_worker_is_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr("sftkit.data.processes.worker_processes", lambda _: pytest.fail("a process was started"))
    prepare_to(pipeline(tmp_path), str(tmp_path / "prepared"), 1)
    assert (tmp_path / "prepared" / MANIFEST).exists()


def test_a_run_trains_on_prepared_data_as_on_its_own(tmp_path):
    prepare_to(pipeline(tmp_path, eval=0.1), str(tmp_path / "prepared"), 2)
    losses = []
    for prepared in ({}, {"prepared": str(tmp_path / "prepared")}):
        arguments = {"output_dir": str(tmp_path / f"run{len(losses)}"), "eval_strategy": "steps", "eval_steps": 2}
        metrics = pipeline(tmp_path, eval=0.1, arguments=arguments, **prepared).run().metrics
        losses.append((metrics["train_loss"], metrics["eval_loss"]))
    assert losses[0] == losses[1]


def test_remote_shards_are_copied_once_and_verified(tmp_path, monkeypatch):
    system = fsspec.filesystem("memory")
    to = "memory://bucket/prepared"
    prepare_to(pipeline(tmp_path), to, 1)
    own = as_lists(pipeline(tmp_path).prepare().data)
    assert as_lists(pipeline(tmp_path, prepared=to).prepare().data) == own
    copied = []
    monkeypatch.setattr("sftkit.data.prepared._fetch", lambda *arguments: copied.append(arguments))
    assert as_lists(pipeline(tmp_path, prepared=to).prepare().data) == own
    assert not copied
    monkeypatch.undo()
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "other"))
    [name, *_] = [path for path in system.ls("/bucket/prepared", detail=False) if "train-0" in path]
    system.pipe(name, b"damaged")
    with pytest.raises(DataError, match=r"train-00000\.arrow: the file is damaged or missing"):
        pipeline(tmp_path, prepared=to).prepare()
    system.rm("/bucket", recursive=True)


def test_a_damaged_shard_is_an_error(tmp_path):
    prepare_to(pipeline(tmp_path), str(tmp_path / "prepared"), 1)
    path = tmp_path / "prepared" / "train-00001.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train-00001\.arrow: the file is damaged"):
        pipeline(tmp_path, prepared=str(tmp_path / "prepared")).prepare()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 32}, r"data\.max_length: it is 32, and the data was prepared with 64"),
        ({"plugins": ["packing"]}, "plugin packing: the data was prepared without it"),
        ({"plugins": ["formats:loss=all"]}, "plugin formats, option loss: it is 'all', and the data was prepared with"),
        ({"eval": 0.5}, "the evaluation sets are eval, and those of the prepared data are none"),
    ],
)
def test_what_contradicts_is_an_error_with_the_difference(tmp_path, change, message):
    prepare_to(pipeline(tmp_path), str(tmp_path / "prepared"), 1)
    with pytest.raises(ConfigError, match=message):
        pipeline(tmp_path, prepared=str(tmp_path / "prepared"), **change).prepare()


def test_another_tokenizer_or_template_is_an_error(tmp_path):
    prepare_to(pipeline(tmp_path), str(tmp_path / "prepared"), 1)
    more, other = tiny_tokenizer(), tiny_tokenizer(chat_template=CHATML + "\n{# more #}")
    more.add_tokens(["<new>"])
    with pytest.raises(ConfigError, match="prepared with another tokenizer"):
        pipeline(tmp_path, tokenizer=more, prepared=str(tmp_path / "prepared")).prepare()
    with pytest.raises(ConfigError, match="the chat template: "):
        pipeline(tmp_path, tokenizer=other, prepared=str(tmp_path / "prepared")).prepare()


def test_a_directory_without_prepared_data_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no prepared data in .*: it has no prepared\.json"):
        pipeline(tmp_path, prepared=str(tmp_path)).prepare()


def test_the_directory_is_complete_or_absent(tmp_path, monkeypatch):
    monkeypatch.setattr("sftkit.run.preparation._write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare_to(pipeline(tmp_path), str(tmp_path / "prepared"), 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "train.jsonl"]


def test_the_same_data_are_kept_and_others_are_refused(tmp_path):
    first = prepare_to(pipeline(tmp_path), str(tmp_path / "prepared"), 1)
    assert prepare_to(pipeline(tmp_path), str(tmp_path / "prepared"), 2) == first
    with pytest.raises(ConfigError, match="has other prepared data"):
        prepare_to(pipeline(tmp_path, max_length=32), str(tmp_path / "prepared"), 1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        prepare_to(pipeline(tmp_path), str(tmp_path / "full"), 1)


def test_a_killed_worker_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Job, "columns", lambda self: os.kill(os.getpid(), signal.SIGKILL))  # which the workers inherit
    with pytest.raises(RunError, match="a worker process was killed"):
        prepare_to(pipeline(tmp_path), str(tmp_path / "prepared"), 2)
    assert not (tmp_path / "prepared").exists()
    assert not list(cache.entries())


@pytest.mark.parametrize("case", ["plain", "packed"])
def test_any_executor_can_run_the_jobs(tmp_path, case):
    prepare_to(pipeline(tmp_path, **CASES[case]), str(tmp_path / "one"), 2)
    shutil.rmtree(tmp_path / "cache")
    prepare_to(pipeline(tmp_path, **CASES[case]), str(tmp_path / "other"), Pool(Pickling(), 3))
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


class Pickling(SameThread):
    """Runs jobs as another machine would: everything is pickled."""

    jobs = 0

    def submit(self, fn, /, *arguments, **options):
        self.jobs += 1
        return super().submit(*pickle.loads(pickle.dumps((fn, *arguments))))


def test_errors_name_the_first_bad_row_by_file_and_line(tmp_path):
    path = tmp_path / "train.jsonl"
    write(path, 100)
    lines = path.read_text().splitlines()
    lines[45] = lines[70] = '{"prompt": "x", "completion": null}'
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"train\.jsonl:46: column 'completion' is null"):
        prepare_to(pipeline(tmp_path), str(tmp_path / "prepared"), 2)


def test_skipped_rows_are_logged_and_counted_as_without_workers(tmp_path, caplog):
    path = tmp_path / "train.jsonl"
    write(path, 100)
    lines = path.read_text().splitlines()
    for at in (5, 25, 45, 65, 85):
        lines[at] = '{"prompt": "x", "completion": null}'
    path.write_text("\n".join(lines))
    manifest = prepare_to(pipeline(tmp_path, on_bad_row="skip"), str(tmp_path / "prepared"), 2)
    messages = [message for message in caplog.messages if "skipped a bad row" in message]
    shutil.rmtree(tmp_path / "cache")
    caplog.clear()
    own = pipeline(tmp_path, on_bad_row="skip").prepare().data
    assert messages == [message for message in caplog.messages if "skipped a bad row" in message]
    assert len(messages) == 3
    assert manifest["splits"]["train"]["counts"] == own.counts.by_split["train"]
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(DataError, match="more than 4 bad rows"):
        prepare_to(pipeline(tmp_path, on_bad_row="skip", max_bad_rows=4), str(tmp_path / "other"), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"streaming": True}, "a stream is prepared while it is read"), ({"prepared": "x"}, "prepared already")],
)
def test_what_cannot_be_prepared_is_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        prepare_to(pipeline(tmp_path, **options), str(tmp_path / "prepared"), 1)


def test_the_key_depends_on_contents_and_not_on_places(tmp_path, monkeypatch):
    one, other = tmp_path / "one", tmp_path / "other"
    found = []
    for directory in (one, other):
        directory.mkdir()
        monkeypatch.setenv("SFTKIT_CACHE", str(directory / "cache"))
        monkeypatch.chdir(directory)
        write(directory / "train.jsonl", 30)
        pipeline(directory, train="train.jsonl", eval=0.1).prepare()
        found.append({path.name for path in (directory / "cache" / "data").iterdir() if path.is_dir()})
    assert found[0] == found[1]
    assert len(found[0]) == 2


def test_the_command_takes_an_executor(tmp_path, monkeypatch, capsys):
    from sftkit.api import run_command

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.jsonl", 50)
    executor, arguments = Pickling(), ["model=demo", "data=train.jsonl", "--to", "prepared", "--json"]
    run_command(["prepare", *arguments], executor=executor, size=2)
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["rows"] == 50
    assert executor.jobs == 4  # one reads the lines
    with pytest.raises(ConfigError, match="the workers are those of the cluster"):
        run_command(["prepare", *arguments, "--workers", "2"], executor=executor, size=2)


def test_the_command_writes_what_a_run_uses(tmp_path, cli):
    (tmp_path / "sft.yaml").write_text("model: demo\ndata: {train: train.jsonl}\n")
    write(tmp_path / "train.jsonl", 30)
    env = {"SFTKIT_CACHE": str(tmp_path / "cache")}
    done = cli("prepare", "sft.yaml", "--to", "prepared", "--workers", "1", "--json", cwd=tmp_path, env=env)
    shown = json.loads(done.stdout)
    assert shown["splits"]["train"]["rows"] == 30
    assert shown["shards"] == 1
    done = cli("preview", "sft.yaml", "data.prepared=prepared", "--rows", "1", cwd=tmp_path, env=env)
    assert "question 0?" in done.stdout
    done = cli("prepare", "sft.yaml", cwd=tmp_path, env=env, code=2)
    assert "name it with --to DIR" in done.stderr
