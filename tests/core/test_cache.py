"""Prepared data is found again if and only if nothing that it depends on has changed."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sftkit import Pipeline
from sftkit.data import cache
from sftkit.data.documents import Formatter, Span
from sftkit.plugin.base import Plugin, dataclass, hookimpl
from sftkit.storage import cache_directory
from sftkit.testing import CHATML, tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "train.jsonl"
    write(path, 30)
    return path


def write(path, number, answer="yes"):
    lines = [json.dumps({"prompt": f"question {n}? ", "completion": answer}) for n in range(number)]
    path.write_text("\n".join(lines), encoding="utf-8")


def prepare(data, *, tokenizer=None, plugins=(), seed=42, max_steps=-1, **options):
    options = {"train": str(data), "max_length": 64, **options}
    train = {"output_dir": str(data.parent / "run"), "seed": seed, "max_steps": max_steps}
    run = Pipeline(
        model=tiny_model(), tokenizer=tokenizer or tiny_tokenizer(), data=options, plugins=plugins, train=train
    )
    return run.prepare().data


def was_cached(*args, **options):
    return "train" in prepare(*args, **options).cached


def as_lists(prepared):
    return {name: rows.with_format(None).to_list() for name, rows in prepared.splits.items()}


def test_unchanged_data_is_prepared_once(data):
    first, second = prepare(data, eval=0.2), prepare(data, eval=0.2)
    assert first.cached == frozenset()
    assert second.cached == {"train", "eval"}
    assert as_lists(first) == as_lists(second)
    assert first.summary() == second.summary()
    assert {name: stats.as_dict() for name, stats in first.stats.items()} == {
        name: stats.as_dict() for name, stats in second.stats.items()
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_the_clock_changes_neither_the_cache_nor_a_fingerprint(data, streaming, monkeypatch):
    import datetime
    import time

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + datetime.timedelta(days=400)

    template = "{{ strftime_now('%d %b %Y') }}" + CHATML
    options = {"tokenizer": tiny_tokenizer(chat_template=template), "streaming": streaming, "max_steps": 1}
    first = prepare(data, **options)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 400 * 86_400)
    monkeypatch.setattr(datetime, "datetime", Later)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    second = prepare(data, **options)
    assert second.cached == (frozenset() if streaming else {"train"})
    assert second.summary()["train"]["fingerprint"] == first.summary()["train"]["fingerprint"]


def test_cached_data_is_used_without_reading_rows(data, monkeypatch):
    prepare(data)
    monkeypatch.setattr("sftkit.data.sources.read_files", lambda *_: pytest.fail("the rows were read"))
    assert was_cached(data)


def test_changed_rows_are_prepared_again(data):
    prepare(data)
    write(data, 30, answer="not")  # as many bytes as before
    assert not was_cached(data)


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 16},
        {"truncation": "drop"},
        {"on_bad_row": "skip"},
        {"plugins": ["formats:loss=all"]},
        {"plugins": ["packing"]},
    ],
)
def test_a_changed_option_prepares_the_data_again(data, change):
    prepare(data)
    assert not was_cached(data, **change)


def test_only_plugins_that_change_the_data_matter(data):
    prepare(data, plugins=["packing"])
    assert not was_cached(data, plugins=["packing:strategy=wrapped"])
    assert was_cached(data, plugins=["packing", "neftune"])


def test_a_changed_tokenizer_or_template_prepares_the_data_again(data):
    prepare(data)
    more = tiny_tokenizer()
    more.add_tokens(["<new>"])
    assert not was_cached(data, tokenizer=more)
    other = tiny_tokenizer()
    other.chat_template = "{{ messages }}"
    assert not was_cached(data, tokenizer=other)


def test_a_changed_seed_of_held_out_rows_prepares_the_data_again(data):
    prepare(data, eval=0.2)
    assert not was_cached(data, eval=0.2, seed=1)


def test_changed_code_prepares_the_data_again(data, monkeypatch):
    prepare(data)
    real = cache.key_of
    from sftkit.data import identity

    original = identity.code_of
    monkeypatch.setattr(identity, "code_of", lambda name: original(name) + ("x" if name == "sftkit.data" else ""))
    assert not was_cached(data)
    assert real is cache.key_of


def test_the_code_of_a_named_formatting_function_matters(data, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "mine_to_format.py"
    module.write_text("def form(row):\n    return row['prompt']\n")
    plugins = [{"formats": {"formatting": "mine_to_format:form"}}]
    prepare(data, plugins=plugins)
    assert was_cached(data, plugins=plugins)
    code = (
        "import mine_to_format; from sftkit.data.identity import _option; print(_option('mine_to_format:form')['code'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    hashes = []
    for body in ("row['prompt']", "row['completion']"):
        module.write_text(f"def form(row):\n    return {body}\n")
        done = subprocess.run([sys.executable, "-B", "-c", code], env=environment, capture_output=True, text=True)
        hashes.append(done.stdout.strip())
    assert all(hashes)
    assert hashes[0] != hashes[1]


def test_callables_with_different_closures_are_different(data):
    def form(word: str) -> Any:
        return [{"formats": {"formatting": lambda row: row["prompt"] + word}}]

    prepare(data, plugins=form("a"))
    assert was_cached(data, plugins=form("a"))
    assert not was_cached(data, plugins=form("b"))


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "meta"])
def test_a_damaged_entry_is_rebuilt(data, harm):
    good = as_lists(prepare(data))
    (entry,) = cache.entries()
    if harm == "flip":
        content = bytearray(entry.rows.read_bytes())
        content[len(content) // 2] ^= 1
        entry.rows.write_bytes(content)
    elif harm == "cut":
        entry.rows.write_bytes(entry.rows.read_bytes()[:-100])
    elif harm == "remove":
        entry.rows.unlink()
    else:
        (entry.directory / cache.ENTRY).write_text("{")
    again = prepare(data)
    assert again.cached == frozenset()
    assert as_lists(again) == good
    assert was_cached(data)


def test_the_remains_of_a_killed_process_are_replaced(data):
    good = as_lists(prepare(data))
    (entry,) = cache.entries()
    partial = cache.partial_of(entry.directory)
    entry.directory.rename(partial)
    (partial / cache.ENTRY).unlink()
    assert as_lists(prepare(data)) == good
    assert not partial.exists()


def test_a_failed_preparation_leaves_no_files(data):
    data.write_text('{"prompt": "x", "completion": null}\n')
    with pytest.raises(Exception, match="completion"):
        prepare(data)
    assert list(cache.entries()) == []
    assert not list(cache_directory().glob("data/*.partial"))


@pytest.mark.slow
def test_two_processes_can_prepare_the_same_data_at_once(data, tmp_path):
    write(data, 4000)
    code = f"""
from sftkit import Pipeline
from sftkit.testing import CHATML, tiny_model, tiny_tokenizer
ready = Pipeline(model=tiny_model(), tokenizer=tiny_tokenizer(), data={{"train": {str(data)!r}}},
                 train={{"output_dir": {str(tmp_path / "run")!r}}}).prepare()
print(len(ready.data.train), ready.data.described["train"]["fingerprint"], "train" in ready.data.cached)
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=120)[0].split() for process in processes]
    assert printed[0][:2] == printed[1][:2]
    assert printed[0][0] == "4000"
    assert sorted(cached for _, _, cached in printed) == ["False", "True"]


def test_no_entry_is_kept_without_the_cache(data):
    assert len(prepare(data, cache=False).train) == 30
    assert not was_cached(data, cache=False)
    assert list(cache.entries()) == []


def test_uncached_rows_are_removed_with_the_prepared_data(data):
    prepared = prepare(data, eval=0.2, cache=False)
    directory = Path(prepared.directory.name)
    assert len(list(directory.rglob("*.arrow"))) == 2
    del prepared
    gc.collect()
    assert not directory.exists()


def test_the_cache_is_listed_and_cleared(data, cli, tmp_path):
    prepare(data)
    listed = cli("cache", "list", cwd=tmp_path, env={"SFTKIT_CACHE": str(cache_directory())}).stdout
    assert str(data) in listed
    assert (
        "removed 1 entries" in cli("cache", "clear", cwd=tmp_path, env={"SFTKIT_CACHE": str(cache_directory())}).stdout
    )
    assert list(cache.entries()) == []


@dataclasses.dataclass(frozen=True)
class Shout(Formatter):
    """Upper case."""

    mark: str

    def __call__(self, rows):
        return [(Span(text.upper() + self.mark, True),) for text in rows["prompt"]]


@dataclass(frozen=True, kw_only=True)
class Shouting(Plugin):
    """Writes every text in upper case."""

    mark: str = "!"

    @hookimpl
    def make_formatter(self):
        return Shout(self.mark)


def test_a_plugin_object_is_identified_by_its_options(data):
    prepare(data, plugins=[Shouting()])
    assert was_cached(data, plugins=[Shouting()])
    assert not was_cached(data, plugins=[Shouting(mark="?")])
