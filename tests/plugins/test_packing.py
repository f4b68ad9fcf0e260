"""Packing loses nothing, isolates documents, and is proved on the model before training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sftkit.data.columns import flat, from_flat
from sftkit.data.tally import Tally
from sftkit.errors import ConfigError
from sftkit.testing import check_plugin, tiny_config, tiny_model, tiny_tokenizer
from sftkit.training.loss import trained_token_loss
from sftkit_plugins.packing import Packing
from sftkit_plugins.pad import Pad


def examples(lengths, seed=0):
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = random.integers(3, 300, offsets[-1]).astype(np.int32)
    labels = np.where(random.random(offsets[-1]) < 0.7, ids, -100).astype(np.int32)
    labels[offsets[:-1]] = -100
    labels[offsets[1:] - 1] = ids[offsets[1:] - 1]
    labels[offsets[:-1][np.asarray(lengths) == 1]] = -100
    return from_flat(offsets, input_ids=ids, labels=labels)


def pack(dataset, limit=32, split="train", **options):
    tally = Tally()
    config = tiny_config(data={"max_length": limit})
    packed = Packing(**options).pack_dataset(dataset=dataset, split=split, config=config, tally=tally)
    return packed, dict(tally.counts.get(split, {}))


def documents(packed):
    """Each document of packed rows: its ids and labels, cut where the positions restart."""
    found = []
    for row in packed:
        ids, labels, positions = (list(row[name]) for name in ("input_ids", "labels", "position_ids"))
        starts = [index for index, position in enumerate(positions) if position == 0]
        for a, b in zip(starts, [*starts[1:], len(ids)], strict=True):
            assert positions[a:b] == list(range(b - a))
            found.append((tuple(ids[a:b]), tuple(labels[a:b])))
    return found


def test_best_fit_keeps_every_document_whole_and_none_twice():
    dataset = examples(np.random.default_rng(1).integers(2, 33, 200))
    packed, counts = pack(dataset)
    alone = [(tuple(row["input_ids"]), tuple(row["labels"])) for row in dataset]
    assert sorted(documents(packed)) == sorted(alone)
    assert max(len(row["input_ids"]) for row in packed) <= 32
    assert counts == {"documents packed": 200, "rows made": len(packed)}


def test_best_fit_fills_rows():
    lengths = np.clip(np.random.default_rng(2).lognormal(4, 0.7, 5000), 2, 512).astype(int)
    packed, _ = pack(examples(lengths), limit=512)
    assert lengths.sum() / (512 * len(packed)) > 0.99


def test_wrapped_rows_are_exactly_full_and_lose_no_token():
    dataset = examples([10, 7, 20, 3])
    packed, _ = pack(dataset, limit=8, strategy="wrapped")
    ids, offsets = flat(packed, "input_ids")
    assert ids.tolist() == flat(dataset, "input_ids")[0].tolist()
    assert np.diff(offsets).tolist() == [8, 8, 8, 8, 8]


def test_an_endless_stream_fills_its_last_row_by_starting_over():
    dataset = examples([10, 7])
    packed, _ = pack(dataset, limit=8, strategy="wrapped", infinite=True)
    ids, _ = flat(packed, "input_ids")
    whole = flat(dataset, "input_ids")[0].tolist()
    assert ids.tolist() == (whole + whole)[:24]


def test_the_concatenation_token_is_put_where_a_document_does_not_end_with_it():
    dataset = from_flat(
        np.array([0, 2, 4]),
        input_ids=np.array([5, 6, 7, 1], np.int32),
        labels=np.array([-100, 6, -100, 1], np.int32),
    )
    packed, counts = pack(dataset, limit=8, strategy="wrapped", concat_token_id=1)
    assert flat(packed, "input_ids")[0].tolist() == [5, 6, 1, 7, 1]
    assert counts["concat tokens added"] == 1


def test_evaluation_sets_are_left_single_unless_asked():
    dataset = examples([4, 4])
    assert pack(dataset, split="eval")[0] is None
    assert len(pack(dataset, split="eval", eval=True)[0]) == 1
    assert len(pack(dataset, limit=6, split="eval", eval="wrapped")[0]) == 2


def test_rows_without_a_trained_token_are_dropped_and_counted():
    dataset = from_flat(
        np.array([0, 16]),
        input_ids=np.arange(16, dtype=np.int32),
        labels=np.array([-100] * 15 + [15], np.int32),
    )
    packed, counts = pack(dataset, limit=8, strategy="wrapped")
    assert len(packed) == 1
    assert counts["rows without a trained token dropped"] == 1


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_documents_have_the_logits_and_gradients_they_have_alone(attention):
    dataset = examples([9, 5, 14, 7, 12])
    packed, _ = pack(dataset)
    found = {}
    collate = Pad().make_collator(tokenizer=tiny_tokenizer())
    for name, rows in (("alone", [[row] for row in dataset]), ("packed", [list(packed)])):
        model = tiny_model(attn_implementation=attention)
        total = 0.0
        for batch in map(collate, rows):
            labels = batch.pop("labels")
            loss = trained_token_loss(model(**batch, use_cache=False).logits, labels, 1)
            loss.backward()
            total += loss.item()
        found[name] = (total, {key: p.grad.clone() for key, p in model.named_parameters()})
    assert found["alone"][0] == pytest.approx(found["packed"][0], rel=1e-5)
    for key, gradient in found["alone"][1].items():
        torch.testing.assert_close(found["packed"][1][key], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
def test_models_that_isolate_documents_are_accepted_and_left_as_they_were(architecture):
    model = tiny_model(architecture).train()
    state = torch.random.get_rng_state()
    with Packing().training_context(model=model, config=tiny_config()):
        assert model.training
        assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_whose_documents_see_each_other_is_refused():
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=4))
    context = Packing().training_context(model=model, config=tiny_config())
    with pytest.raises(ConfigError, match="bloom lets packed documents attend to each other"), context:
        pass


def test_options_of_wrapped_are_refused_where_nothing_is_wrapped():
    assert "infinite works with strategy wrapped only" in str(
        next(iter(Packing(infinite=True).check_run(tiny_config())))
    )
    check_plugin(Packing())
