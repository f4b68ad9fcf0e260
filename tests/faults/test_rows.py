"""Rows 16, 17 and 28 of the table of faults: malformed rows, files that differ, and keys that rows lack."""

from __future__ import annotations

import gzip
import json
from itertools import islice

import pyarrow as pa
import pytest
from datasets import Dataset
from pyarrow import parquet

from sftkit import DataError, Pipeline, SftkitError
from sftkit.testing import CHATML, tiny_model, tiny_tokenizer

PAIRS = [{"prompt": f"q{n}? ", "completion": f"answer {n}"} for n in range(8)]
CHATS = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"it is {n}"}]}
    for n in range(8)
]
ANSWER = {"role": "assistant", "content": "x"}
STREAM = {"streaming": True, "window": 16}


def lines(*rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


@pytest.fixture
def prepare(tmp_path):
    """Prepares data as a run would, with its first examples; called with the data and the section ``data``."""

    def make(train, template=CHATML, **data):
        pipeline = Pipeline(
            model=tiny_model(),
            data=train if isinstance(train, (Dataset, list)) else None,
            tokenizer=tiny_tokenizer(chat_template=template),
            config={"data": {"cache": False, "max_length": 256, **data}}
            if isinstance(train, (Dataset, list))
            else {"data": {"train": str(train), "cache": False, "max_length": 256, **data}},
            train={"output_dir": str(tmp_path / "run"), "max_steps": 2},
        )
        rows = pipeline.prepare().data.train
        return rows, list(islice(rows, 40))

    return make


MALFORMED = {
    "broken JSON": (PAIRS, '{"prompt": "x"', "not valid JSON"),
    "no object": (PAIRS, "[1, 2]", "not a JSON object"),
    "a missing column": (PAIRS, {"prompt": "x"}, "column 'completion' is null"),
    "a number": (PAIRS, {"prompt": "x", "completion": 5}, "column 'completion' is of type int, not text"),
    "NaN": (PAIRS, '{"prompt": "x", "completion": NaN}', "column 'completion' is of type float, not text"),
    "half an emoji": (PAIRS, '{"prompt": "\\ud83d", "completion": "y"}', "half of a surrogate pair"),
    "deep nesting": (PAIRS, '{"prompt": ' + "[" * 100_000, "not valid JSON"),
    "null content": (
        CHATS,
        {"messages": [{"role": "user", "content": None}, ANSWER]},
        "message 1 (user) has no content",
    ),
    "no content": (CHATS, {"messages": [{"role": "user"}, ANSWER]}, "message 1 (user) has no content"),
    "no role": (CHATS, {"messages": [{"content": "x"}, ANSWER]}, "message 1 has no role"),
    "an unknown role": (CHATS, {"messages": [{"role": "robot", "content": "x"}, ANSWER]}, "unknown role 'robot'"),
    "a number as content": (CHATS, {"messages": [{"role": "user", "content": 5}, ANSWER]}, "is of type int, not text"),
    "one message": (CHATS, {"messages": ANSWER}, "is of type dict, not a list of messages"),
    "no messages": (CHATS, {"messages": None}, "is null, not a list of messages"),
}


@pytest.mark.parametrize("stream", [{}, STREAM], ids=["prepared", "streamed"])
@pytest.mark.parametrize("case", MALFORMED)
def test_16_a_malformed_row_is_an_error_with_file_and_line(prepare, tmp_path, case, stream):
    good, bad, message = MALFORMED[case]
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(*good[:5], bad, *good[5:]), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        prepare(path, **stream)
    (problem,) = caught.value.problems
    assert problem.where.endswith("rows.jsonl:6")
    assert message in problem.what
    assert problem.fix


@pytest.mark.parametrize("stream", [{}, STREAM], ids=["prepared", "streamed"])
@pytest.mark.parametrize("case", MALFORMED)
def test_16_skipped_rows_are_counted_once_per_pass_and_capped(prepare, tmp_path, case, stream):
    good, bad, _ = MALFORMED[case]
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(*good, bad, bad), encoding="utf-8")
    rows, found = prepare(path, on_bad_row="skip", max_bad_rows=2, **stream)
    assert len(found) == (40 if stream else 8)  # a stream repeats its bad rows, and goes on
    if stream:
        counts = rows.counts.by_split["train"]
        assert counts["bad rows skipped"] + counts["unreadable lines skipped"] > 2
    with pytest.raises(DataError, match=r"more than 1 (bad rows|lines cannot be read)"):
        prepare(path, on_bad_row="skip", max_bad_rows=1, **stream)


FILES = {
    "an empty file": ("a.jsonl", b"", "the file is empty"),
    "blank lines": ("a.jsonl", b"\n \n", "the data has no rows"),
    "an empty array": ("a.json", b"[]", "the data has no rows"),
    "a header alone": ("a.csv", b"prompt,completion\n", "the data has no rows"),
    "UTF-16": ("a.jsonl", lines(*PAIRS).encode("utf-16"), "UTF-16, not UTF-8"),
    "bad UTF-8": ("a.jsonl", lines(*PAIRS).encode() + b'{"text": "\xff"}\n', "a.jsonl:9: not valid UTF-8"),
    "bad UTF-8 in a table": ("a.csv", b"text\na\n\xff\n", "a.csv:3: not valid UTF-8"),
    "a cell too many": ("a.csv", b"text\na\na,b\n", "a.csv:3: the row has 2 cells"),
    "half an archive": ("a.jsonl.gz", gzip.compress(lines(*PAIRS * 9).encode())[:-9], "Compressed file ended"),
    "an empty Parquet file": ("a.parquet", b"", "cannot read"),
    "a damaged Parquet file": ("a.parquet", b"PAR1damagedPAR1", "cannot read"),
}


@pytest.mark.parametrize("stream", [{}, STREAM], ids=["prepared", "streamed"])
@pytest.mark.parametrize("case", FILES)
def test_16_a_file_that_cannot_be_read_is_an_error(prepare, tmp_path, case, stream):
    name, content, message = FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / name, **stream)


def test_16_the_command_names_file_line_and_fix(start, configure):
    config = configure(rows=[*PAIRS, {"prompt": "x", "completion": None}])
    command = start("run", config, "-o", "run")
    assert command.wait() == 2
    (line,) = (line for line in command.output.splitlines() if line.startswith("error: "))
    assert line.startswith("error: data.train, ")
    assert "rows.jsonl:9: column 'completion' is null -> fill in the text" in line
    assert line.endswith("set data.on_bad_row=skip")


TEXTS = [{"text": f"hello {n}"} for n in range(4)]
DIFFERENT = {
    "other columns": (PAIRS, [{"prompt": "x", "answer": "y"}], "completion"),
    "another format": (PAIRS, TEXTS, "prompt"),
    "a number for text": (TEXTS, [{"text": 3}], "text"),
    "an object for text": (TEXTS, [{"text": {"a": 1}}], "text"),
    "text for messages": (CHATS, [{"messages": "user: hello"}], "messages"),
    "a word for a weight": (
        [{"text": "a", "weight": 2}],
        [{"text": "b", "weight": "heavy"}],
        "weight",
    ),
}


@pytest.mark.parametrize("stream", [{}, STREAM], ids=["prepared", "streamed"])
@pytest.mark.parametrize("case", DIFFERENT)
def test_17_a_file_that_differs_is_named_with_its_column(prepare, tmp_path, case, stream):
    first, second, column = DIFFERENT[case]
    for name, rows in (("a", first), ("b", second)):
        (tmp_path / f"{name}.jsonl").write_text(lines(*rows), encoding="utf-8")
    with pytest.raises(SftkitError) as caught:
        prepare(tmp_path / "?.jsonl", **stream)
    assert "b.jsonl:1" in str(caught.value)
    assert f"column {column!r}" in str(caught.value)


@pytest.mark.parametrize("stream", [{}, STREAM], ids=["prepared", "streamed"])
def test_17_parquet_files_whose_types_differ_are_refused(prepare, tmp_path, stream):
    for name, values in (("a", ["one", "two"]), ("b", [1, 2])):
        parquet.write_table(pa.table({"text": values}), tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: column 'text' is of type int64, but of type string in other"):
        prepare(tmp_path / "*.parquet", **stream)


def test_17_the_command_names_file_and_column(start, configure, tmp_path):
    config = configure(rows=PAIRS)
    (tmp_path / "more.jsonl").write_text(lines({"prompt": "x", "completion": 5}), encoding="utf-8")
    command = start("run", config, "-o", "run", "data.train=[rows.jsonl, more.jsonl]")
    assert command.wait() == 2
    assert "more.jsonl:1: column 'completion' is of type int, not text -> " in command.output


TEMPLATE = (
    "{{ tools | tojson }}{% for m in messages %}<{{ m.role }}>{% generation %}{{ m | tojson }}"
    "{% endgeneration %}{% endfor %}{{ eos_token }}"
)


def tool(name, **properties):
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


def calling(name, **arguments):
    return {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


TOOL_ROWS = [
    {
        "messages": [
            {"role": "user", "content": "go"},
            calling("f", city="Ulm"),
            {"role": "assistant", "content": "1"},
        ],
        "tools": [tool("f", city={"type": "string", "enum": ["Ulm", "Bonn"]})],
    },
    {
        "messages": [
            {"role": "user", "content": "go"},
            calling("g", x=1, y=[2]),
            {"role": "assistant", "content": "2"},
        ],
        "tools": [tool("g", x={"type": "integer", "minimum": 0}, y={"type": "array"}), tool("h")],
    },
]


@pytest.mark.parametrize("source", ["file", "stream", "list", "Dataset"])
def test_28_tools_and_messages_with_absent_keys_get_no_nulls(prepare, tmp_path, source):
    data = TOOL_ROWS * 4
    if source in ("file", "stream"):
        data = tmp_path / "rows.jsonl"
        data.write_text(lines(*TOOL_ROWS * 4), encoding="utf-8")
    elif source == "Dataset":
        data = Dataset.from_list(TOOL_ROWS * 4)
    stream = {**STREAM, "shuffle_buffer": 0, "window": 8} if source == "stream" else {}
    _, found = prepare(data, TEMPLATE, max_length=1024, **stream)
    texts = [tiny_tokenizer().decode(row["input_ids"]) for row in found[:8]]
    assert not any("null" in text for text in texts)
    for row in TOOL_ROWS:
        assert any(text.startswith(json.dumps(row["tools"])) for text in texts)
