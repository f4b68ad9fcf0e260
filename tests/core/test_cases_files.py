"""Cases of files that went wrong: what they hold is what is trained, or the file and the line are named."""

from __future__ import annotations

import json

import pytest

from sftkit import Pipeline
from sftkit.errors import DataError
from sftkit.testing import tiny_model, tiny_tokenizer

#: Renders tool calls as JSON, in the order of the data.
TOOLS = (
    "{% for m in messages %}<s>{{ m['role'] }}:{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}{{ call['function']['name'] }}:{{ call['function']['arguments'] | tojson }}"
    "{% endfor %}</s>{% endgeneration %}{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def prepare(data, *, template=None, **options):
    config = {"data": {"max_length": 200, "cache": False, **options}, "train": {"output_dir": "unused"}}
    passed = data if isinstance(data, list) else None
    if passed is None:
        config["data"]["train"] = str(data)
    tokenizer = tiny_tokenizer(chat_template=template)
    return Pipeline(model=tiny_model(), tokenizer=tokenizer, data=passed, config=config).prepare().data


def texts(data, split="train"):
    return [tiny_tokenizer().decode(ids, skip_special_tokens=True) for ids in data.splits[split]["input_ids"]]


def calls(value):
    function = {"name": "f", "arguments": value}
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    return {"messages": [{"role": "user", "content": "a"}, call]}


ARGUMENTS = [
    {"time": "2025-08-01"},
    {"time": 1690876800},
    {"z": 3, "a": 3.0, "big": 12345678901234567890, "text": "é"},
    {"nested": [1, "two", None, {"b": True}]},
]


@pytest.mark.parametrize("from_file", [True, False])
def test_case_20_tool_arguments_are_rendered_exactly_as_written(tmp_path, from_file):
    rows = [calls(arguments) for arguments in ARGUMENTS]
    data = write(tmp_path / "20.jsonl", lines(*rows)) if from_file else rows
    rendered = [text.partition("assistant:f:")[2] for text in texts(prepare(data, template=TOOLS))]
    assert [json.loads(text) for text in rendered] == ARGUMENTS
    assert rendered[2].index('"z"') < rendered[2].index('"a"')
    assert '"z": 3, "a": 3.0,' in rendered[2]


def test_case_22_answers_that_look_like_dates_are_text(tmp_path):
    path = write(tmp_path / "22.jsonl", lines(*({"prompt": "when? ", "completion": f"2024-0{n}-01"} for n in (5, 6))))
    assert texts(prepare(path)) == ["when? 2024-05-01", "when? 2024-06-01"]


def test_case_23b_cells_that_look_like_missing_values_are_text(tmp_path):
    cells = ["NA", "None", "null", "nan", "007", "1.0", "2024-05-01", "True"]
    rows = "".join(f"Which country?,{cell},Namibia\n" for cell in cells) + "Which country?,,Namibia\n"
    found = texts(prepare(write(tmp_path / "23b.csv", f"instruction,input,output\n{rows}")))
    assert [text.partition("### Input:\n")[2].partition("\n")[0] for text in found] == [*cells, ""]
    assert "### Input:" not in found[-1]


@pytest.mark.parametrize("order", [("24a", "24b"), ("24b", "24a")])
def test_case_24_a_column_of_one_file_is_ignored_and_counted(tmp_path, order):
    write(tmp_path / f"1_{order[0]}.jsonl", lines({"prompt": "a ", "completion": "b"}))
    extra = {"prompt": "a ", "completion": "b", "source": "x"}
    write(tmp_path / f"2_{order[1]}.jsonl", lines(extra, extra))
    data = prepare(tmp_path)
    assert texts(data) == ["a b"] * 3
    assert data.counts.by_split["train"]["rows noted: column source ignored"] == 2


HALF = [{"prompt": "q ", "completion": "ok"}, {"prompt": "a ", "completion": "b \ud83d c"}]


@pytest.mark.parametrize(("from_file", "place"), [(True, r"25\.jsonl:2"), (False, "data.train, row 2")])
def test_case_25_half_an_emoji_is_reported_with_its_place_or_skipped(tmp_path, from_file, place):
    data = write(tmp_path / "25.jsonl", lines(*HALF)) if from_file else HALF
    with pytest.raises(DataError, match=rf"{place}: column 'completion' has half of a surrogate pair"):
        prepare(data)
    skipped = prepare(data, on_bad_row="skip")
    assert texts(skipped) == ["q ok"]
    assert skipped.counts.by_split["train"]["unreadable lines skipped"] == 1


def split_files(directory):
    for split in ("train", "test"):
        write(directory / f"{split}.jsonl", lines(*({"text": f"{split} {n}"} for n in range(3))))
    for hidden in (".ipynb_checkpoints/train.jsonl", ".git/train.jsonl", "._train.jsonl", "__pycache__/train.jsonl"):
        write(directory / hidden, lines({"text": "hidden"}))
    return directory


@pytest.mark.parametrize("pattern", ["", "*.jsonl"])
def test_case_26_only_the_files_of_the_split_are_read(tmp_path, pattern):
    source = split_files(tmp_path / "26") / pattern
    data = prepare(source, eval=str(source))
    assert texts(data) == [f"train {n}" for n in range(3)]
    assert texts(data, "eval") == [f"test {n}" for n in range(3)]
    assert data.counts.by_split["train"]["files not read: split test"] == 1
    assert texts(prepare(source, split="test")) == [f"test {n}" for n in range(3)]
