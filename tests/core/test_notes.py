"""What a formatter notes about rows, and columns that it ignores, are counted and shown once by every command."""

from __future__ import annotations

import dataclasses
import json
from typing import ClassVar

import pytest
import typer

from sftkit import Pipeline, Plugin, dataclass, hookimpl
from sftkit.api import Formatted, Formatter, Skipped, Span, documents_of, with_documents
from sftkit.data.counts import describe_notes, note_lines
from sftkit.testing import CHATML, tiny_model, tiny_tokenizer
from sftkit_commands.check import check
from sftkit_commands.check.checks import run_checks
from sftkit_commands.preview import preview

FIX = "raise the limit"
SHORT = f"only the first two words are used -> {FIX}"


@dataclasses.dataclass(frozen=True)
class Words(Formatter):
    """A document for each of the first two words; a row without words is skipped."""

    columns_used: ClassVar[frozenset[str]] = frozenset({"words"})

    def __call__(self, rows):
        return [self.outcome(text.split()) for text in rows["words"]]

    def outcome(self, words):
        notes = ([SHORT] if len(words) > 2 else []) + (["message key name ignored"] if "name" in words else [])
        documents = [[Span("word: ", False), Span(word, True)] for word in words[:2]]
        return Formatted(documents, notes) if words else Skipped("no words")


@dataclass(frozen=True, kw_only=True)
class WordFormat(Plugin):
    """Formats words."""

    @hookimpl
    def make_formatter(self):
        return Words()


ROWS = [
    {"id": 1, "words": "one two three", "source": "web"},
    {"id": 2, "words": "a name", "source": "web"},
    {"id": 3, "words": "", "source": None},
    {"id": 4, "words": "four", "source": "web"},
]
NOTES = {
    "rows noted: column id ignored": 4,
    "rows noted: column source ignored": 3,
    f"rows noted: {SHORT}": 1,
    "rows noted: message key name ignored": 1,
}


@pytest.fixture
def model(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer(chat_template=CHATML).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pipeline(tmp_path, model, rows=ROWS, train=None, **data):
    data = {"train": write(tmp_path / "train.jsonl", rows), "max_length": 64, **data}
    train = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "use_cpu": True, **(train or {})}
    return Pipeline(config={"model": model, "data": data, "train": train}, plugins=[WordFormat()])


def noted(counts):
    return {what: number for what, number in counts.items() if what.startswith("rows noted")}


def test_a_row_becomes_several_documents_with_notes(tmp_path, model):
    data = pipeline(tmp_path, model).prepare().data
    texts = [tiny_tokenizer().decode(row["input_ids"]) for row in data.train]
    assert texts == [f"<s>word: {word}</s>" for word in ("one", "two", "a", "name", "four")]
    assert noted(data.counts.by_split["train"]) == NOTES
    assert data.counts.by_split["train"]["rows dropped: no words"] == 1


def test_rows_from_the_cache_and_of_a_stream_have_the_same_notes(tmp_path, model):
    run = pipeline(tmp_path, model)
    first, second = (run.prepare().data for _ in range(2))
    assert second.cached == {"train"}
    assert noted(second.summary()["train"]) == noted(first.summary()["train"]) == NOTES
    stream = pipeline(tmp_path, model, streaming=True, window=5, shuffle_buffer=0).prepare().data
    assert noted(stream.counts.by_split["train"]) == NOTES
    assert NOTES.keys() <= stream.summary()["train"].keys()


def test_columns_that_are_used_or_empty_are_not_noted(tmp_path, model):
    rows = [{"words": "one", "source": None}, {"words": "two", "source": None}]
    assert not noted(pipeline(tmp_path, model, rows).prepare().data.counts.by_split["train"])


def test_run_shows_each_note_once_and_keeps_the_counts_in_the_manifest(tmp_path, model, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    pipeline(tmp_path, model).run()
    shown = capsys.readouterr().out
    assert shown.count("source") == shown.count("noted") == 1
    assert "noted in train: column id ignored (4 rows); column source ignored (3 rows); only the first two " in shown
    stored = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert noted(stored["data"]["train"]) == NOTES


def test_check_warns_of_notes_that_name_a_fix(tmp_path, model):
    report = run_checks(pipeline(tmp_path, model))
    plain, warning = (verdict for verdict in report.verdicts if verdict.name == "noted")
    ignored = "column id ignored (4 rows); column source ignored (3 rows); message key name ignored (1 row)"
    assert (plain.status, plain.what, plain.fix) == ("ok", f"train: {ignored}", "")
    what = "train: 1 of 4 rows: only the first two words are used"
    assert (warning.status, warning.what, warning.fix) == ("warn", what, FIX)
    assert noted(report.as_dict()["data"]["train"]) == NOTES


@pytest.mark.parametrize("columns", ["80", "140"])
def test_the_table_of_check_does_not_repeat_the_notes(tmp_path, model, columns, capsys, monkeypatch):
    rows = [{"id": n, "source": "web", "prompt": f"{n}?", "completion": "yes"} for n in range(20)]
    path = write(tmp_path / "train.jsonl", rows)
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(typer.Exit) as ended:
        check(model=model, data=path)
    assert ended.value.exit_code == 0
    shown = capsys.readouterr().out
    assert " ".join(shown.replace("│", " ").split()).count("columns id, source ignored (20 rows)") == 1
    assert shown.count("noted") == 1


def test_preview_shows_the_notes_of_its_split(tmp_path, model, capsys):
    rows = [{"id": n, "prompt": f"{n}?", "completion": "yes"} for n in range(20)]
    options = {"plugin": None, "model": model, "data": write(tmp_path / "train.jsonl", rows), "rows": 1, "row": 1}
    preview(["data.eval=0.2", "data.max_length=64"], split="eval", ids=False, html=None, **options)
    assert capsys.readouterr().out.count("noted in eval: column id ignored (4 rows)") == 1
    page = tmp_path / "page.html"
    preview(["data.eval=0.2", "data.max_length=64"], split="train", ids=False, html=page, **options)
    assert "noted in train: column id ignored (16 rows)" in page.read_text(encoding="utf-8")


def test_names_that_were_ignored_in_equally_many_rows_share_a_line():
    notes = {f"column {name} ignored": 52 for name in ("id", "source")}
    notes |= {"message key name ignored": 3, "message key id ignored": 3, "column lang ignored": 7}
    notes |= {"earlier reasoning is left out -> choose another mode": 1200}
    assert describe_notes(notes) == [
        "columns id, source ignored (52 rows)",
        "message keys name, id ignored (3 rows)",
        "column lang ignored (7 rows)",
        "earlier reasoning is left out (1,200 rows)",
    ]
    assert note_lines({"train": {"rows": 3, "rows noted: a": 1, "rows noted: b": 2}, "eval": {"rows": 3}}) == [
        "noted in train: a (1 row); b (2 rows)"
    ]


def test_wrappers_change_every_document_and_keep_the_notes():
    made = Formatted([[Span("a", True)], [Span("b", True)]], ["note"])
    shouted = with_documents(made, lambda document: [span._replace(text=span.text.upper()) for span in document])
    assert shouted == Formatted([[Span("A", True)], [Span("B", True)]], ["note"])
    assert list(documents_of([made, Skipped("x"), [Span("c", True)]])) == [*made.documents, [Span("c", True)]]
    half = with_documents(made, lambda document: Skipped("no a") if document[0].text != "a" else document)
    assert half == Formatted([[Span("a", True)]], ["note"])
    assert with_documents(made, lambda _: Skipped("none")) == Skipped("none")
