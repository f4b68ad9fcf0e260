"""The collator: what a batch holds, padded or packed."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from sftkit.testing import plugin_set, tiny_config, tiny_model, tiny_tokenizer
from sftkit_plugins.pad import Pad


def collate(examples: list[dict[str, Any]], **options: Any) -> dict[str, torch.Tensor]:
    return Pad(**options).make_collator(tokenizer=tiny_tokenizer())(examples)


def example(*ids: int) -> dict[str, Any]:
    return {"input_ids": list(ids), "labels": [-100, *ids[1:]]}


def packed(*documents: list[int]) -> dict[str, Any]:
    return {
        "input_ids": [token for document in documents for token in document],
        "labels": [label for document in documents for label in [-100, *document[1:]]],
        "position_ids": [position for document in documents for position in range(len(document))],
    }


def test_the_plugin_fills_the_collator_slot() -> None:
    collator = plugin_set(Pad(to_multiple_of=2)).hook.make_collator(
        tokenizer=tiny_tokenizer(), processor=None, config=tiny_config()
    )
    assert collator([example(5, 6)])["input_ids"].tolist() == [[5, 6]]


def test_rows_are_padded_on_the_right_to_the_longest_of_the_batch() -> None:
    batch = collate([example(5, 6, 7), example(8)])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 2, 2]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_the_length_is_rounded_up_to_a_multiple() -> None:
    assert collate([example(5, 6, 7)], to_multiple_of=8)["input_ids"].shape == (1, 8)
    assert collate([example(*range(3, 11))], to_multiple_of=8)["input_ids"].shape == (1, 8)


def test_a_real_eos_stays_trained_when_eos_is_the_pad_token() -> None:
    tokenizer = tiny_tokenizer(pad=False)
    batch = Pad().make_collator(tokenizer=tokenizer)([example(5, 1), example(5, 6, 7, 1)])
    assert batch["input_ids"].tolist()[0] == [5, 1, 1, 1]
    assert batch["labels"].tolist()[0] == [-100, 1, -100, -100]
    assert batch["attention_mask"].tolist()[0] == [1, 1, 0, 0]


@pytest.mark.parametrize("make", [list, np.array, torch.tensor])
def test_lists_arrays_and_tensors_make_the_same_batch(make: Any) -> None:
    rows = [{name: make(values) for name, values in example(*ids).items()} for ids in ([5, 6, 7], [8, 9])]
    assert collate(rows)["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]


def test_packed_rows_have_positions_and_no_attention_mask() -> None:
    batch = collate([packed([5, 6], [7, 8, 9])])
    assert batch.keys() == {"input_ids", "labels", "position_ids"}
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2]]


def test_the_padding_of_a_packed_row_is_a_separate_document() -> None:
    batch = collate([packed([5, 6], [7, 8, 9]), packed([5, 6])])
    assert batch["position_ids"].tolist()[1] == [0, 1, 0, 1, 2]
    assert batch["labels"].tolist()[1] == [-100, 6, -100, -100, -100]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_of_a_packed_document_equal_those_alone(attention: str) -> None:
    model = tiny_model(attn_implementation=attention).eval()
    rows = [[[5, 6, 7, 8], [9, 10, 11], [12, 13]], [[14, 15, 16]]]
    batch = collate([packed(*documents) for documents in rows], to_multiple_of=16)
    batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
        for row, documents in enumerate(rows):
            start = 0
            for document in documents:
                alone = model(input_ids=torch.tensor([document]), use_cache=False).logits[0]
                torch.testing.assert_close(logits[row, start : start + len(document)], alone, atol=1e-5, rtol=1e-5)
                start += len(document)


def test_missing_weights_and_padding_have_weight_one() -> None:
    batch = collate([example(5, 6), {**example(5, 6, 7), "loss_weights": [1.0, 0.5, 2.0]}])
    assert batch["loss_weights"].dtype == torch.float32
    assert batch["loss_weights"].tolist() == [[1.0, 1.0, 1.0], [1.0, 0.5, 2.0]]
    assert "loss_weights" not in collate([example(5, 6)])


def test_a_collator_is_the_same_after_pickling() -> None:
    collator = Pad(to_multiple_of=8).make_collator(tokenizer=tiny_tokenizer())
    assert pickle.loads(pickle.dumps(collator)) == collator
