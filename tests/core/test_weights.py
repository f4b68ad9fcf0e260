"""Weights of tokens: mapped from spans to batches by characters, and absent if all are 1."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset

from sftkit import ConfigError, DataError, Formatter, Pipeline, Plugin, Span, hookimpl
from sftkit.data.columns import Examples, examples_of, examples_table, flatten_column
from sftkit.data.counts import Counts
from sftkit.data.encode import encode
from sftkit.data.length import fit_length
from sftkit.data.packs import Packer
from sftkit.data.regions import Texts
from sftkit.data.store import Spool, open_rows, write_rows
from sftkit.plugin.base import dataclass
from sftkit.testing import CHATML, packed_rows, tiny_config, tiny_model, tiny_tokenizer
from sftkit_plugins.packing import Packing

DOCUMENTS = [
    [Span("Question: ", False), Span("a long first answer", True, 0.5), Span(" and more", True, 2.0)],
    [Span("plain", True)],
    [Span("left out", True, 0.0), Span(" and half", True, 0.5)],
]


def rows(documents, tokenizer, special=True):
    made = encode(documents, tokenizer, "bos_eos" if special else "none")
    return [
        (made.ids_S[a:b].tolist(), made.labels_S[a:b].tolist(), made.all_weights_S[a:b].tolist())
        for a, b in pairwise(made.offsets_N1)
    ]


def reference(document, tokenizer):
    """Token by token, with the tokenizer's public call: a token has the weight of its last character."""
    text = "".join(span.text for span in document)
    weights = [span.weight if span.trained else 0.0 for span in document for _ in span.text]
    out = tokenizer(text, return_offsets_mapping=True)
    ids, ends = list(out["input_ids"]), [end for _, end in out["offset_mapping"]]
    found = [weights[end - 1] if end else 0.0 for end in ends]
    if ids[-1] != tokenizer.eos_token_id:
        ids, found = [*ids, tokenizer.eos_token_id], [*found, weights[-1]]
    found[0] = 0.0
    labels = [token if weight else -100 for token, weight in zip(ids, found, strict=True)]
    return ids, labels, [weight or 1.0 for weight in found]


def weighted(*weights, starts=(0,)):
    """Examples with these weights; their ids count from 3."""
    ids = np.arange(3, 3 + len(weights), dtype=np.int32)
    labels = ids.copy()
    labels[list(starts)] = -100
    offsets = np.array([*starts, len(ids)])
    return Examples(ids, labels, offsets, np.array(weights, np.float32))


def plain(*lengths):
    ids = np.arange(3, 3 + sum(lengths), dtype=np.int32)
    offsets = np.append(0, np.cumsum(lengths))
    labels = ids.copy()
    labels[offsets[:-1]] = -100
    return Examples(ids, labels, offsets)


def prepare(data, *plugins, cache=False, **options):
    sections = {"data": {"max_length": 64, "cache": cache, **options}, "train": {"output_dir": "unused"}}
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    return Pipeline(model=tiny_model(), tokenizer=tokenizer, data=data, config=sections, plugins=plugins).prepare()


@pytest.mark.parametrize("bos", [True, False])
def test_a_token_has_the_weight_of_its_last_character(bos):
    tokenizer = tiny_tokenizer(bos=bos)
    for document, found in zip(DOCUMENTS, rows(DOCUMENTS, tokenizer), strict=True):
        assert found == reference(document, tokenizer)


def test_a_token_across_a_boundary_has_the_later_weight():
    tokenizer, text = tiny_tokenizer(bos=False), "what is the capital of France"
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    number, start = next((at, start) for at, (start, end) in enumerate(offsets) if at and end - start > 1)
    document = [Span(text[: start + 1], True, 0.5), Span(text[start + 1 :], True, 3.0)]
    found = rows([document], tokenizer)[0]
    assert found[2][number - 1 : number + 1] == [0.5 if number > 1 else 1.0, 3.0]
    assert found == reference(document, tokenizer)


def test_weights_equal_an_independent_implementation_on_real_rows(real_data):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_data / "llama2_tokenizer")
    data = json.loads((real_data / "code_alpaca_2k.json").read_text())[:200]
    random = np.random.default_rng(0)
    documents = []
    for row in data:
        text = f"{row['instruction']} {row['output']}"
        cuts = sorted({0, *random.integers(0, len(text), 3).tolist(), len(text)})
        documents.append(
            [Span(text[a:b], bool(random.integers(2)), float(random.choice([0, 0.5, 1, 2]))) for a, b in pairwise(cuts)]
        )
    for document, found in zip(documents, rows(documents, tokenizer), strict=True):
        assert found == reference(document, tokenizer)


def test_eos_has_the_weight_of_the_last_span():
    ids, labels, found = rows([[Span("a b c", True, 0.25)]], tiny_tokenizer())[0]
    assert ids[-1] == labels[-1] == tiny_tokenizer().eos_token_id
    assert found[-1] == 0.25


def test_a_weight_of_zero_does_not_train():
    documents = [[Span("a b ", trained, weight), Span("c", True)] for trained, weight in ((True, 0.0), (False, 1.0))]
    one, other = rows(documents, tiny_tokenizer())
    assert one == other


def test_there_are_no_weights_if_all_are_one():
    assert encode([[Span("a b", True, 1.0)], [Span("c", True)]], tiny_tokenizer(), "bos_eos").weights_S is None


def test_adjacent_spans_with_equal_weights_are_one_region():
    (texts,) = Texts.pieces_of([[Span("ab", True), Span("cd", True), Span("ef", True, 0.5), Span("g", True, 0.5)]])
    assert (texts.starts, texts.ends, texts.weights) == ([0, 4], [4, 7], [1.0, 0.5])


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), 1e-40, "2", None])
def test_an_invalid_weight_of_a_span_is_rejected(weight):
    with pytest.raises(DataError, match="a span has the weight"):
        encode([[Span("a b", True, weight)]], tiny_tokenizer(), "bos_eos")


def test_selecting_and_joining_examples_keeps_weights():
    examples = weighted(1, 2, 3, 4, 5, starts=(0, 2))
    assert examples.take(np.array([1, 0])).weights_S.tolist() == [3, 4, 5, 1, 2]
    assert examples.where(np.array([False, True])).weights_S.tolist() == [3, 4, 5]
    both = Examples.concatenate([plain(2), examples])
    assert both.weights_S.tolist() == [1, 1, 1, 2, 3, 4, 5]
    assert both.weights_S.dtype == np.float32
    assert Examples.concatenate([plain(2), plain(1)]).weights_S is None


def test_truncation_cuts_weights_and_tokens_together():
    data = tiny_config(data={"max_length": 2}).data
    assert fit_length(weighted(1, 2, 3, 4, 5, starts=(0, 3)), "train", data, Counts()).weights_S.tolist() == [
        1,
        2,
        4,
        5,
    ]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_file_has_weights_for_all_rows_if_one_table_has_them(tmp_path, order):
    parts = [plain(2, 1, 3), weighted(1, 0.5, 2, starts=(0, 1))]
    totals = write_rows(tmp_path / "rows.arrow", (parts[at].table() for at in order))
    found = examples_of(open_rows(tmp_path / "rows.arrow"))
    expected = Examples.concatenate([parts[at].where(parts[at].trained_N > 0) for at in order])
    assert found.weights_S.tolist() == expected.weights_S.tolist()
    assert found.ids_S.tolist() == expected.ids_S.tolist()
    assert found.offsets_N1.tolist() == expected.offsets_N1.tolist()
    assert totals["rows"] == len(expected)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.arrow"]


def test_a_file_without_weights_has_no_column_for_them(tmp_path):
    write_rows(tmp_path / "rows.arrow", [plain(2, 3).table()])
    assert open_rows(tmp_path / "rows.arrow").column_names == ["input_ids", "labels"]


def test_the_fingerprint_depends_on_the_weights(tmp_path):
    found = {
        write_rows(tmp_path / f"{at}.arrow", [part.table()])["fingerprint"]
        for at, part in enumerate([plain(3), weighted(1, 1, 2), weighted(1, 1, 3)])
    }
    assert len(found) == 3


@pytest.mark.parametrize("held", [0, 1 << 20])
def test_a_spool_keeps_weights_in_memory_and_on_disk(tmp_path, monkeypatch, held):
    monkeypatch.setattr("sftkit.data.store.HELD", held)
    parts = [plain(2, 3), weighted(1, 0.5, 2, starts=(0, 1)), plain(1), weighted(1, 7)]
    with Spool(tmp_path) as spool:
        for part in parts:
            spool.append(part)
        found, expected = spool.examples(), Examples.concatenate(parts)
        for name in ("ids_S", "labels_S", "offsets_N1", "weights_S"):
            assert getattr(found, name).tolist() == getattr(expected, name).tolist()
    assert list(tmp_path.iterdir()) == []


def examples_with_weights(number):
    random = np.random.default_rng(0)
    made = []
    for _ in range(number):
        length = int(random.integers(2, 12))
        ids = random.integers(3, 300, length)
        weights = random.choice([0.5, 1.0, 2.0], length).astype(np.float32)
        made.append({"input_ids": ids, "labels": np.append(-100, ids[1:]), "loss_weights": weights})
    return made


@pytest.mark.parametrize("options", [{}, {"strategy": "wrapped"}, {"strategy": "wrapped", "concat_token_id": 299}])
def test_packed_tokens_keep_their_weights(options):
    examples = examples_with_weights(40)
    expected = sorted(
        (token, weight)
        for row in examples
        for token, label, weight in zip(row["input_ids"], row["labels"], row["loss_weights"], strict=True)
        if label != -100
    )
    rows = packed_rows(Packing(**options), examples, max_length=16)
    found = [
        (token, weight)
        for row in rows
        for token, label, weight in zip(row["input_ids"], row["labels"], row["loss_weights"], strict=True)
        if label != -100
    ]
    if options.get("concat_token_id"):
        added = {(token, weight) for token, weight in found if token == 299}
        assert {weight for _, weight in added} == {0.5, 1.0, 2.0}
    if not options:
        assert sorted(found) == expected
    else:
        assert set(found) <= {*expected, *((299, weight) for weight in (0.5, 1.0, 2.0))}


def test_a_token_added_by_packing_has_the_weight_before_it():
    row = {"input_ids": [5, 6], "labels": [-100, 6], "loss_weights": [1.0, 0.5]}
    packed = packed_rows(Packing(strategy="wrapped", concat_token_id=9), [row, row], max_length=6)
    assert packed[0]["loss_weights"] == [1.0, 0.5, 0.5] * 2


def test_only_data_with_weights_has_the_column():
    texts = ["some text here", "and other text"]
    assert "loss_weights" not in prepare([{"text": text, "weight": 1} for text in texts]).data.train.column_names
    data = prepare([{"text": text, "weight": weight} for text, weight in zip(texts, (1, 0.5), strict=True)]).data
    found = [set(row["loss_weights"].tolist()) for row in data.train]
    assert found == [{1.0}, {1.0, 0.5}]
    assert data.train[1]["loss_weights"].dtype == np.float32


def test_sources_with_and_without_weights_can_be_mixed(tmp_path):
    for name, weight in (("a", {}), ("b", {"weight": 0.5})):
        lines = [json.dumps({"text": f"{name} text {at}", **weight}) for at in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    mix = {str(tmp_path / f"{name}.jsonl"): 1 for name in "ab"}
    found = prepare(None, mix=mix).data
    kinds = [set(row["loss_weights"].tolist()) for row in found.train]
    assert sorted(map(sorted, kinds)) == [[0.5, 1.0]] * 4 + [[1.0]] * 4


@pytest.mark.parametrize("plugins", [(), ("packing",)])
def test_a_stream_keeps_weights(tmp_path, plugins):
    lines = [json.dumps({"text": f"text {at}", "weight": 0.5 if at % 2 else 1}) for at in range(16)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    config = {
        "data": {"train": str(tmp_path / "rows.jsonl"), "streaming": True, "max_length": 32, "window": 8},
        "train": {"max_steps": 1, "output_dir": "unused"},
    }
    ready = Pipeline(model=tiny_model(), tokenizer=tiny_tokenizer(), config=config, plugins=plugins).prepare()
    stream = iter(ready.data.train)
    examples = [next(stream) for _ in range(4)]
    batch = ready.collator(examples)
    assert batch["loss_weights"].shape == batch["labels"].shape
    assert set(batch["loss_weights"][batch["labels"] != -100].tolist()) == {0.5, 1.0}
    assert ready.data.train.counts.by_split["train"]["trained tokens with a weight other than 1"] > 0


def test_a_changed_weight_prepares_the_data_again():
    rows = [{"text": "some text", "weight": weight} for weight in (1.0, 0.5)]
    assert not prepare(rows, cache=True).data.cached
    assert prepare(rows, cache=True).data.cached
    assert not prepare([rows[0], {**rows[1], "weight": 0.25}], cache=True).data.cached


def test_weighted_tokens_are_counted():
    summary = prepare([{"text": "a b"}, {"text": "c d"}]).data.summary()["train"]
    assert "trained tokens with a weight other than 1" not in summary
    data = prepare(
        [{"prompt": "a ", "completion": "b", "weight": 0.5}, {"prompt": "c ", "completion": "d", "weight": 1}]
    )
    trained = int((data.data.train[0]["labels"] != -100).sum())
    assert data.data.summary()["train"]["trained tokens with a weight other than 1"] == trained


@dataclasses.dataclass(frozen=True)
class Forgetful(Packer):
    def __call__(self, examples):
        table = dataclasses.replace(examples, weights_S=None).table()
        ids, offsets = flatten_column(table, "input_ids")
        places = np.arange(len(ids)) - np.repeat(offsets[:-1], np.diff(offsets))
        yield examples_table(offsets, input_ids=ids, labels=flatten_column(table, "labels")[0], position_ids=places)


@dataclass(frozen=True, kw_only=True)
class ForgetfulPacking(Plugin):
    """Drops the weights."""

    @hookimpl
    def make_packer(self):
        return Forgetful()


def test_a_packer_that_drops_weights_is_rejected():
    rows = [{"text": "some text", "weight": 0.5}]
    with pytest.raises(ConfigError, match="Forgetful drops them"):
        prepare(rows, ForgetfulPacking())
    assert len(prepare([{"text": "some text"}], ForgetfulPacking()).data.train) == 1


def test_a_collator_that_drops_weights_is_rejected():
    def collate(examples):
        return {name: torch.as_tensor(examples[0][name]).long()[None] for name in ("input_ids", "labels")}

    rows = Dataset.from_list([{"text": "some text", "weight": 0.5}])
    config = {"data": {"cache": False}, "train": {"output_dir": "unused"}}
    run = Pipeline(model=tiny_model(), tokenizer=tiny_tokenizer(), data=rows, config=config, collator=collate)
    (verdict,) = run.prepare().verdicts()
    assert verdict.status == "wrong"
    assert "the batch has no loss_weights" in verdict.what


@dataclasses.dataclass(frozen=True)
class Halves(Formatter):
    def __call__(self, rows):
        return [[Span(text, True, 0.5)] for text in rows["body"]]


@dataclass(frozen=True, kw_only=True)
class HalfFormat(Plugin):
    """A formatter whose spans have weights."""

    @hookimpl
    def make_formatter(self, columns):
        return Halves() if "body" in columns else None


def test_the_spans_of_any_formatter_can_have_weights():
    found = prepare([{"body": "some text"}], HalfFormat()).data.train[0]
    assert set(found["loss_weights"][found["labels"] != -100].tolist()) == {0.5}
