"""Filters of rows: which rows they get and when, what becomes of their decisions, and what is refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest

from sftkit import Pipeline, Plugin, dataclass, hookimpl
from sftkit.api import Pool, RowFilter, Skipped, prepare_to
from sftkit.data import batches
from sftkit.errors import ConfigError, DataError, HookError, RunError
from sftkit.testing import tiny_model, tiny_tokenizer

ROWS = [{"text": f"row {number} is {'odd' if number % 2 else 'even'}"} for number in range(20)]


class OddOnly(RowFilter):
    """Drops even rows."""

    def __call__(self, rows):
        return [None if "odd" in text else Skipped("even", text) for text in rows["text"]]


class SeenTexts(RowFilter):
    """Drops texts that came before."""

    remembers = True

    def __init__(self):
        self.given = []

    def __call__(self, rows):
        decided = []
        for text in rows["text"]:
            repeats = text in self.given
            decided.append(Skipped("seen", earlier=self.given.index(text)) if repeats else None)
            self.given.append(text)
        return decided


class Rejects(RowFilter):
    """Drops the rows of the evaluation sets."""

    reads_held_out = True

    def __init__(self):
        self.known = {}

    def see_held_out(self, split, rows):
        self.known |= dict.fromkeys(rows["text"], split)

    def __call__(self, rows):
        return [Skipped(f"in {self.known[text]}") if text in self.known else None for text in rows["text"]]


FILTERS = {"odd": OddOnly, "seen": SeenTexts, "held out": Rejects}


@dataclass(frozen=True, kw_only=True)
class Filtering(Plugin):
    """Filters rows."""

    kind: str = "odd"

    @hookimpl
    def filter_rows(self, columns):
        assert columns["text"].dtype == "string"
        return FILTERS[self.kind]()


@dataclass(frozen=True, kw_only=True)
class Second(Filtering):
    """Filters rows after another plugin."""


@dataclass(frozen=True, kw_only=True)
class Returning(Plugin):
    """Decides what a function says."""

    @hookimpl
    def filter_rows(self):
        return Decider()


class Decider(RowFilter):
    decide = staticmethod(lambda rows: [None] * len(rows["text"]))

    def __call__(self, rows):
        return type(self).decide(rows)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pipeline(data, *plugins, **options):
    section = data if isinstance(data, dict) else {}
    loaded = None if isinstance(data, dict) else data
    config = {"data": {"max_length": 64, **section}}
    return Pipeline(
        model=tiny_model(),
        tokenizer=tiny_tokenizer(),
        data=loaded,
        config=config,
        plugins=plugins,
        train={"use_cpu": True, "max_steps": 4, "per_device_train_batch_size": 2},
        **options,
    )


def texts(rows):
    return [tiny_tokenizer().decode(row["input_ids"], skip_special_tokens=True) for row in rows]


def prepared(data, *plugins, **options):
    return pipeline(data, *plugins, **options).prepare().data


def counts(data, split="train"):
    return {what: number for what, number in data.counts.by_split[split].items() if "noted" not in what}


def named(what, plugin="Filtering"):
    return f"rows dropped by {__name__}:{plugin}: {what}"


def test_rows_that_a_filter_drops_are_counted_by_plugin_and_reason():
    data = prepared(ROWS, Filtering())
    assert texts(data.train) == [row["text"] for row in ROWS[1::2]]
    assert counts(data) == {"rows read": 20, named("even"): 10}
    first = data.dropped["train"][0]
    assert (first.place, first.detail, first.what) == ("data.train, row 1", ROWS[0]["text"], named("even"))


def test_a_filter_gets_only_the_rows_that_those_before_it_keep():
    data = prepared([*ROWS, *ROWS], Filtering(), Second(kind="seen"))
    assert texts(data.train) == [row["text"] for row in ROWS[1::2]]
    assert counts(data) == {"rows read": 40, named("even"): 20, named("seen", "Second"): 10}
    repeat = next(row for row in data.dropped["train"] if row.what == named("seen", "Second"))
    assert (repeat.place, repeat.detail) == ("data.train, row 22", "repeats data.train, row 2")


@pytest.mark.parametrize("kind", ["odd", "seen"])
def test_neither_workers_nor_batches_change_the_rows(kind, tmp_path, monkeypatch):
    rows = [row for at in range(0, 20, 4) for row in ROWS[: at + 4]]
    config = {"train": write(tmp_path / "a.jsonl", rows), "cache": False}
    plugin = Filtering(kind=kind)
    whole = prepared(config, plugin)
    with ThreadPoolExecutor(2) as executor:
        monkeypatch.setattr(batches, "BATCH", 7)
        monkeypatch.setattr("sftkit.data.feed.BATCH", 7)
        manifest = prepare_to(pipeline(config, plugin), str(tmp_path / "out"), Pool(executor, 2))
    assert manifest["splits"]["train"]["counts"] == dict(whole.counts.by_split["train"])
    assert manifest["splits"]["train"]["dropped"] == [row._asdict() for row in whole.dropped["train"]]
    read = prepared({**config, "prepared": str(tmp_path / "out")}, plugin)
    assert read.dropped == whole.dropped
    assert texts(read.train) == texts(whole.train)


def test_prepared_data_of_another_filter_is_refused(tmp_path):
    config = {"train": write(tmp_path / "a.jsonl", ROWS)}
    prepare_to(pipeline(config, Filtering()), str(tmp_path / "out"), 1)
    with pytest.raises(ConfigError, match="it is 'seen', and the data was prepared with 'odd'"):
        prepared({**config, "prepared": str(tmp_path / "out")}, Filtering(kind="seen"))
    with pytest.raises(ConfigError, match="the data was prepared with it"):
        prepared({**config, "prepared": str(tmp_path / "out")})


def test_a_mix_is_filtered_as_a_whole_and_counted_by_source(tmp_path):
    one, two = write(tmp_path / "one.jsonl", ROWS), write(tmp_path / "two.jsonl", [*ROWS[10:], {"text": "other"}] * 2)
    data = prepared({"mix": {one: 1, two: 1}, "mix_until": "all"}, Filtering(kind="seen"))
    assert counts(data) == {"rows read": 20 + 20 + 21, named("seen (two)"): 21}
    assert set(texts(data.train)) == {row["text"] for row in ROWS} | {"other"}
    assert texts(data.train).count("other") == 20  # the only row of its source that is left repeats


def test_files_in_a_list_are_counted_by_file(tmp_path):
    files = [write(tmp_path / "one.jsonl", ROWS), write(tmp_path / "two.jsonl", ROWS[:5])]
    data = prepared({"train": files}, Filtering(kind="seen"))
    assert counts(data)[named("seen (two)")] == 5
    place = data.dropped["train"][0]
    assert (place.place, place.detail) == (f"data.train, {files[1]}:1", f"repeats data.train, {files[0]}:1")


def test_rows_are_held_out_of_those_that_are_left():
    data = prepared([*ROWS, *ROWS], Filtering(kind="seen"), eval=0.5)
    train, held_out = texts(data.train), texts(data.eval["eval"])
    assert not {*train} & {*held_out}
    assert sorted(train + held_out) == sorted(row["text"] for row in ROWS)
    assert counts(data)["rows read"] + counts(data, "eval")["rows read"] == 40
    assert named("seen") not in counts(data, "eval")


def test_evaluation_sets_are_not_filtered_and_can_be_read_by_filters():
    data = prepared(ROWS, Filtering(), Second(kind="held out"), eval={"a": ROWS[:2], "b": ROWS[3:5]})
    assert texts(data.eval["a"]) == [row["text"] for row in ROWS[:2]]
    assert counts(data)[named("in a", "Second")] == 1
    assert counts(data)[named("in b", "Second")] == 1
    assert len(data.train) == 8


def test_a_filter_that_reads_the_held_out_fraction_gets_the_rest():
    data = prepared([*ROWS, *ROWS], Filtering(kind="held out"), eval=0.25)
    assert not {*texts(data.train)} & {*texts(data.eval["eval"])}
    assert len(data.eval["eval"]) == 10


def test_the_cache_knows_the_filter_and_the_evaluation_sets_that_it_may_read(tmp_path):
    config = {"train": write(tmp_path / "a.jsonl", ROWS), "eval": write(tmp_path / "b.jsonl", ROWS[:1])}
    plugin = Filtering(kind="held out")
    assert not prepared(config, plugin).cached
    assert prepared(config, plugin).cached == {"train", "eval"}
    assert prepared(config).cached == {"eval"}
    write(tmp_path / "b.jsonl", ROWS[:3])
    data = prepared(config, plugin)
    assert not data.cached
    assert len(data.train) == 17


@dataclass(frozen=True, kw_only=True)
class Listed(Plugin):
    """Drops the rows of files."""

    paths = ("files",)
    files: list[str]

    @hookimpl
    def filter_rows(self):
        made = Rejects()
        for name in self.files:
            made.see_held_out(
                "files", {"text": [json.loads(line)["text"] for line in Path(name).read_text().splitlines()]}
            )
        return made


def test_the_cache_knows_the_contents_of_files_that_a_filter_names(tmp_path):
    config = {"train": write(tmp_path / "a.jsonl", ROWS)}
    (tmp_path / "elsewhere").mkdir()
    files = [write(tmp_path / "b.jsonl", ROWS[:1])]
    moved = [write(tmp_path / "elsewhere" / "b.jsonl", ROWS[:1])]
    assert len(prepared(config, Listed(files=files)).train) == 19
    assert prepared(config, Listed(files=moved)).cached == {"train"}
    write(tmp_path / "b.jsonl", ROWS[:2])
    assert len(prepared(config, Listed(files=files)).train) == 18


def test_paths_in_a_list_are_relative_to_the_configuration_file(tmp_path, monkeypatch):
    write(tmp_path / "b.jsonl", ROWS[:1])
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    config = tmp_path / "run.yaml"
    config.write_text("data: {max_length: 64}\nplugins: {test_filters:Listed: {files: [b.jsonl]}}\n")
    run = Pipeline(model=tiny_model(), tokenizer=tiny_tokenizer(), data=ROWS, config=config, train={"use_cpu": True})
    assert len(run.prepare().data.train) == 19
    assert str(tmp_path / "b.jsonl") in run.written().text


def test_a_stream_is_filtered_in_each_pass_and_resumes_exactly(tmp_path):
    config = {"train": write(tmp_path / "a.jsonl", ROWS), "streaming": True, "window": 10, "shuffle_buffer": 8}
    stream = pipeline(config, Filtering()).prepare().data.train
    rows = texts(islice(stream, 24))
    assert {*rows[:10]} == {row["text"] for row in ROWS[1::2]}
    assert stream.counts.by_split["train"][named("even")] >= 20
    again = pipeline(config, Filtering()).prepare().data.train
    list(islice(again, 9))
    again.seek(again.position(9))
    assert texts(islice(again, 15)) == rows[9:]


def test_the_first_dropped_rows_of_a_stream_are_known_with_their_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    data = prepared({"train": path, "streaming": True, "shuffle_buffer": 0}, Filtering())
    assert data.dropped["train"][0].place == f"data.train, {path}:1"


@pytest.mark.slow
def test_a_stream_shows_the_evaluation_sets_to_filters(tmp_path):
    config = {"train": write(tmp_path / "a.jsonl", ROWS), "streaming": True, "shuffle_buffer": 0}
    config["eval"] = write(tmp_path / "b.jsonl", ROWS[:5])
    stream = prepared(config, Filtering(kind="held out")).train
    assert texts(islice(stream, 15)) == [row["text"] for row in ROWS[5:]]


def test_a_stream_refuses_a_filter_that_remembers_rows(tmp_path):
    config = {"train": write(tmp_path / "a.jsonl", ROWS), "streaming": True}
    with pytest.raises(ConfigError, match=r"plugin .*Filtering, hook filter_rows: the filter remembers rows"):
        prepared(config, Filtering(kind="seen"))


WRONG = {
    "too few": (lambda rows: [], "returned 0 decisions for 20 rows"),
    "booleans": (lambda rows: [True] * len(rows["text"]), "returned True for a row"),
    "no reason": (lambda rows: [Skipped("")] * len(rows["text"]), "returned Skipped"),
    "no list": (lambda rows: True, "returned bool for 20 rows"),
    "data in reasons": (lambda rows: [Skipped(f"is {text}") for text in rows["text"] * 3], "decisions for 20"),
    "a later row": (lambda rows: [Skipped("as", earlier=99) for _ in rows["text"]], "which is not earlier"),
    "batches matter": (lambda rows: [None, *[Skipped("later") for _ in rows["text"][1:]]], "smaller batches"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_decision_is_refused_with_plugin_and_hook(case, monkeypatch):
    function, expected = WRONG[case]
    monkeypatch.setattr(Decider, "decide", staticmethod(function))
    with pytest.raises(RunError, match=f"plugin .*:Returning, hook filter_rows: .*{expected}"):
        prepared(ROWS, Returning())


def test_reasons_with_data_of_the_rows_are_refused(monkeypatch):
    monkeypatch.setattr(Decider, "decide", staticmethod(lambda rows: [Skipped(text) for text in rows["text"]]))
    with pytest.raises(RunError, match="hook filter_rows: the filter gave more than 50 reasons"):
        prepared([{"text": f"{number} rows"} for number in range(60)], Returning())


def test_an_exception_in_a_filter_names_plugin_and_hook(monkeypatch):
    monkeypatch.setattr(Decider, "decide", staticmethod(lambda rows: rows["no such column"]))
    with pytest.raises(HookError, match=r"plugin .*:Returning, hook filter_rows: KeyError"):
        prepared(ROWS, Returning())


@pytest.mark.parametrize("streaming", [False, True])
def test_a_filter_that_drops_everything_is_an_error_that_names_it(streaming, tmp_path, monkeypatch):
    monkeypatch.setattr(Decider, "decide", staticmethod(lambda rows: [Skipped("bad")] * len(rows["text"])))
    config = {"train": write(tmp_path / "a.jsonl", ROWS), "streaming": streaming}
    with pytest.raises(DataError, match=r"dropped by .*:Returning: bad|Returning: bad"):
        prepared(config, Returning())


def test_a_hook_that_returns_no_filter_is_refused(monkeypatch):
    monkeypatch.setitem(FILTERS, "odd", dict)
    with pytest.raises(RunError, match="hook filter_rows: the hook returned dict"):
        prepared(ROWS, Filtering())
