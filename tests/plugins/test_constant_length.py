"""The plain constant-length stream, as TRL 0.11 had it."""

from __future__ import annotations

import pickle
import random
import warnings
from itertools import islice
from typing import Any

import pytest
import torch
from datasets import Dataset

from sftkit.testing import tiny_tokenizer
from sftkit_plugins.packing.stream import ConstantLengthDataset

TEXTS = [f"### Question: {number} plus one?\n ### Answer: {number + 1}" for number in range(20)]
ROWS = Dataset.from_dict({"text": TEXTS})


def stream(rows: Any = ROWS, tokenizer: Any = None, **options: Any) -> ConstantLengthDataset:
    options = {"dataset_text_field": "text", "seq_length": 16, "shuffle": False, **options}
    return ConstantLengthDataset(tokenizer or tiny_tokenizer(), rows, **options)


def tokens(pieces: Any) -> list[int]:
    return [token for piece in pieces for token in piece["input_ids"].tolist()]


def expected(texts: list[str] = TEXTS, **options: Any) -> list[int]:
    tokenizer = tiny_tokenizer()
    return [token for text in texts for token in [*tokenizer.encode(text, **options), tokenizer.eos_token_id]]


def test_the_defaults_equal_trls() -> None:
    tokenizer = tiny_tokenizer()
    made = ConstantLengthDataset(tokenizer, ROWS, "text")
    assert (made.seq_length, made.infinite, made.shuffle, made.current_size) == (1024, False, True, 0)
    assert made.max_buffer_size == 1024 * 3.6 * 1024
    assert (made.append_concat_token, made.add_special_tokens) == (True, True)
    assert made.concat_token_id == tokenizer.eos_token_id
    assert made.formatting_func({"text": "a"}) == "a"
    assert len(made) == 20


def test_texts_with_eos_form_one_stream_cut_into_equal_pieces() -> None:
    made = stream()
    pieces = list(made)
    whole = expected()
    assert tokens(pieces) == whole[: len(whole) // 16 * 16]
    assert all(piece["input_ids"].shape == (16,) for piece in pieces)
    assert made.current_size == len(pieces)


def test_labels_equal_the_ids() -> None:
    piece = next(iter(stream()))
    assert torch.equal(piece["labels"], piece["input_ids"])
    assert piece["labels"].dtype == torch.int64


def test_special_tokens_and_the_concat_token_can_be_omitted() -> None:
    assert tokens(stream(seq_length=1, add_special_tokens=False)) == expected(add_special_tokens=False)
    eos = tiny_tokenizer().eos_token_id
    assert tokens(stream(seq_length=1, append_concat_token=False)) == [id for id in expected() if id != eos]


def test_a_function_makes_the_text() -> None:
    found = stream(seq_length=1, dataset_text_field=None, formatting_func=lambda row: row["text"][:9])
    assert tokens(found) == expected([text[:9] for text in TEXTS])


def test_texts_and_pieces_are_shuffled_by_pythons_random() -> None:
    random.seed(0)
    first = tokens(stream(shuffle=True))
    random.seed(0)
    again = tokens(stream(shuffle=True))
    random.seed(1)
    other = tokens(stream(shuffle=True))
    assert first == again
    assert first != other
    assert sorted(tokens(stream(shuffle=True, seq_length=1))) == sorted(expected())


def test_a_short_rest_of_a_buffer_is_dropped() -> None:
    size = len(TEXTS[0])
    made = stream(
        TEXTS[:3],
        seq_length=7,
        num_of_sequences=1,
        chars_per_token=size / 7,
        formatting_func=str,
        dataset_text_field=None,
    )
    texts = [expected([text]) for text in TEXTS[:3]]
    assert tokens(made) == [token for ids in texts for token in ids[: len(ids) // 7 * 7]]


def test_infinite_starts_over_with_a_warning() -> None:
    made = stream(Dataset.from_dict({"text": TEXTS[:2]}), infinite=True, num_of_sequences=20)
    with pytest.warns(UserWarning, match="The dataset reached end and the iterator is reset to the start"):
        pieces = list(islice(made, 10))
    whole = expected(TEXTS[:2]) * 10
    assert tokens(pieces) == whole[:160]


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_infinite_without_a_text_is_an_error(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="the data holds no text"):
        list(stream([{"text": text} for text in texts], infinite=True))


def test_a_tokenizer_without_eos_warns() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.warns(UserWarning, match="The passed tokenizer does not have an EOS token"):
        assert stream(tokenizer=tokenizer, eos_token_id=7).concat_token_id == 7


def test_an_eos_whose_id_is_0_is_the_concat_token() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<s>"
    assert stream(tokenizer=tokenizer, eos_token_id=7).concat_token_id == 0


def test_a_function_with_more_than_one_argument_warns() -> None:
    with pytest.warns(UserWarning, match="The passed formatting_func has more than one argument"):
        stream(dataset_text_field=None, formatting_func=lambda row, more=1: row["text"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream(dataset_text_field=None, formatting_func=lambda row: row["text"])


def test_a_column_together_with_a_function_warns() -> None:
    with pytest.warns(UserWarning, match="dataset_text_field is ignored"):
        stream(formatting_func=str)


def test_neither_a_column_nor_a_function_is_an_error() -> None:
    with pytest.raises(ValueError, match="dataset_text_field"):
        stream(dataset_text_field=None)


def test_it_can_be_pickled_for_a_data_worker() -> None:
    assert tokens(pickle.loads(pickle.dumps(stream()))) == tokens(stream())
