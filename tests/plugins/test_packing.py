"""Packing loses no document, fills its rows, and the documents of a row do not see each other."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from sftkit.data.counts import Counts
from sftkit.errors import ConfigError, DataError
from sftkit.testing import packed_rows, run_problems, tiny_config, tiny_model
from sftkit_plugins.packing import Packing
from sftkit_plugins.packing.isolation import isolated, trials_of
from sftkit_plugins.packing.plan import best_fit
from sftkit_plugins.pad import PadCollator

IGNORE = -100


def documents(*lengths, untrained=(), first_id=3):
    """Documents of the given lengths whose ids count on, trained but for the first token (or not at all)."""
    rows, start = [], first_id
    for index, length in enumerate(lengths):
        ids = list(range(start, start + length))
        labels = [IGNORE] * length if index in untrained else [IGNORE, *ids[1:]]
        rows.append({"input_ids": ids, "labels": labels})
        start += length
    return Dataset.from_list(rows)


def pack(dataset, plugin=None, split="train", counts=None, **data):
    """The rows that the plugin makes, as a run makes them."""
    return packed_rows(plugin or Packing(), dataset.to_list(), split=split, counts=counts, **{"max_length": 16, **data})


def pieces(row):
    """The row's documents as (ids, labels), cut where the positions restart."""
    starts = [index for index, place in enumerate(row["position_ids"]) if place == 0]
    cuts = zip(starts, [*starts[1:], len(row["input_ids"])], strict=True)
    return [(row["input_ids"][low:high], row["labels"][low:high]) for low, high in cuts]


def test_best_fit_keeps_every_document_whole_and_unchanged():
    dataset = documents(5, 9, 3, 7, 11, 1, 6, 16, 2)

    packed = [piece for row in pack(dataset) for piece in pieces(row)]

    assert sorted(packed) == sorted((row["input_ids"], row["labels"]) for row in dataset)


def test_best_fit_rows_never_exceed_max_length_and_fill_up():
    rows = pack(documents(10, 9, 8, 8, 7, 6))

    assert [len(row["input_ids"]) for row in rows] == [16, 16, 16]


def test_best_fit_follows_the_textbook_rule():
    lengths = np.random.default_rng(0).integers(1, 65, 400)

    plan = best_fit(lengths, 64)

    free = []  # the textbook: longest first, into the fullest row that still has room
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [row for row, space in enumerate(free) if space >= length]
        if not fitting:
            free.append(64)
            fitting = [len(free) - 1]
        free[min(fitting, key=free.__getitem__)] -= length
    filled = np.bincount(plan.rows, weights=plan.lengths).astype(int)
    assert sorted(filled.tolist()) == sorted(64 - space for space in free)


def test_best_fit_fills_rows_of_realistic_lengths_to_999_permille():
    lengths = np.random.default_rng(0).lognormal(5, 0.8, 50_000).astype(int).clip(2, 2048)

    rows = best_fit(lengths, 2048).rows[-1] + 1

    assert lengths.sum() / (rows * 2048) >= 0.999


def test_best_fit_is_deterministic():
    lengths = np.random.default_rng(1).integers(2, 17, 200).tolist()

    assert pack(documents(*lengths)).to_list() == pack(documents(*lengths)).to_list()


def test_rows_keep_the_order_of_the_data():
    first_ids = [row["input_ids"][0] for row in pack(documents(3, 16, 4, 15, 5))]

    assert first_ids == sorted(first_ids)


def test_columns_are_int32_lists_with_positions_restarting_at_each_document():
    rows = pack(documents(9, 7))

    assert rows.column_names == ["input_ids", "labels", "position_ids"]
    assert all(feature.feature.dtype == "int32" for feature in rows.features.values())
    assert rows[0]["position_ids"] == [*range(9), *range(7)]


def test_packing_is_the_same_for_selected_and_sliced_data():
    dataset = documents(5, 9, 3, 7)

    reversed_rows = pack(dataset.select([3, 2, 1, 0]))

    assert sorted(p for row in reversed_rows for p in pieces(row)) == sorted(
        p for r in pack(dataset) for p in pieces(r)
    )


def test_long_documents_are_cut_at_max_length_and_counted():
    counts = Counts()

    rows = pack(documents(20, 4), counts=counts)

    assert sorted(len(row["input_ids"]) for row in rows) == [4, 16]
    assert counts.by_split["train"]["rows truncated"] == 1


def test_long_documents_are_an_error_with_truncation_error():
    with pytest.raises(DataError, match="20 tokens"):
        pack(documents(20, 4), truncation="error")


def test_wrapped_drops_long_documents_with_truncation_drop():
    rows = pack(documents(20, 4), Packing(strategy="wrapped"), truncation="drop")

    assert [len(row["input_ids"]) for row in rows] == [4]


def test_documents_and_rows_are_counted():
    counts = Counts()

    pack(documents(9, 7, 5), counts=counts)

    assert counts.as_dict() == {"train": {"documents packed": 3, "rows made": 2}}


def test_rows_without_a_trained_token_are_dropped_and_counted():
    counts = Counts()

    rows = pack(documents(16, 16, untrained=[1]), counts=counts)

    assert len(rows) == 1
    assert counts.by_split["train"]["rows without a trained token dropped"] == 1


def test_wrapped_cuts_one_stream_at_exactly_max_length():
    rows = pack(documents(20, 9, 10), Packing(strategy="wrapped"))

    assert [len(row["input_ids"]) for row in rows] == [16, 16, 7]
    assert [token for row in rows for token in row["input_ids"]] == list(range(3, 42))


def test_wrapped_positions_restart_at_documents_and_at_rows():
    rows = pack(documents(20, 9, 10), Packing(strategy="wrapped"))

    assert rows["position_ids"][1] == [*range(4), *range(9), *range(3)]
    assert rows["position_ids"][2] == [*range(7)]


def test_a_trained_token_without_context_is_masked_and_counted():
    counts = Counts()

    rows = pack(documents(20, 9, 10), Packing(strategy="wrapped"), counts=counts)

    assert [row["labels"][0] for row in rows] == [IGNORE] * 3
    assert counts.by_split["train"]["trained tokens without context at the start of a row"] == 2
    assert sum(label != IGNORE for row in rows for label in row["labels"]) == 39 - 3 - 2


def test_infinite_fills_the_last_row_from_the_start_of_the_data():
    rows = pack(documents(20, 9), Packing(strategy="wrapped", infinite=True))

    assert [len(row["input_ids"]) for row in rows] == [16, 16]
    assert rows["input_ids"][1] == [*range(19, 32), 3, 4, 5]


def test_infinite_repeats_data_shorter_than_a_row():
    rows = pack(documents(3, 2), Packing(strategy="wrapped", infinite=True))

    assert rows["input_ids"] == [[3, 4, 5, 6, 7] * 3 + [3]]


def test_infinite_counts_no_evaluation_row_twice():
    rows = pack(documents(20, 9), Packing(strategy="wrapped", infinite=True, eval=True), split="eval")

    assert [len(row["input_ids"]) for row in rows] == [16, 13]


@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_short_last_row_can_be_dropped_and_is_counted(split):
    counts = Counts()

    rows = pack(documents(20, 9, 10), Packing(strategy="wrapped", eval=True, keep_short=False), split, counts)

    assert [token for row in rows for token in row["input_ids"]] == list(range(3, 35))
    assert [len(row["input_ids"]) for row in rows] == [16, 16]
    assert counts.by_split[split]["tokens of a short last row dropped"] == 7


def test_a_full_last_row_is_kept():
    counts = Counts()

    rows = pack(documents(20, 12), Packing(strategy="wrapped", keep_short=False), counts=counts)

    assert [len(row["input_ids"]) for row in rows] == [16, 16]
    assert "tokens of a short last row dropped" not in counts.by_split["train"]


def test_data_too_small_for_a_full_row_is_an_error():
    with pytest.raises(DataError, match="the data has 12 tokens, and a row takes 16"):
        pack(documents(5, 7), Packing(strategy="wrapped", keep_short=False))


def test_the_concat_token_ends_documents_that_lack_it():
    rows = pack(documents(3, 3), Packing(strategy="wrapped", concat_token_id=8))  # the second ends with 8

    assert rows["input_ids"] == [[3, 4, 5, 8, 6, 7, 8]]
    assert rows["position_ids"] == [[0, 1, 2, 3, 0, 1, 2]]


def test_the_concat_token_is_trained_where_its_document_is():
    rows = pack(documents(3, 3, untrained=[1]), Packing(strategy="wrapped", concat_token_id=1))

    assert rows["labels"] == [[IGNORE, 4, 5, 1, IGNORE, IGNORE, IGNORE, IGNORE]]


def test_evaluation_sets_are_not_packed_by_default():
    assert pack(documents(9, 7), split="eval") is None


def test_evaluation_sets_can_have_another_strategy():
    rows = pack(documents(20, 9), Packing(eval="wrapped"), split="eval")

    assert [len(row["input_ids"]) for row in rows] == [16, 13]


def test_options_of_wrapped_are_refused_with_best_fit():
    problems = run_problems(Packing(infinite=True, concat_token_id=1, keep_short=False))

    assert [problem.what.split()[0] for problem in problems] == ["concat_token_id", "infinite", "keep_short"]
    assert not run_problems(Packing(strategy="wrapped", infinite=True))
    assert not run_problems(Packing(eval="wrapped", keep_short=False))


def test_filling_and_dropping_the_last_row_contradict():
    (problem,) = run_problems(Packing(strategy="wrapped", infinite=True, keep_short=False))

    assert problem.where == "plugin packing, option keep_short"


def summed_loss(model, ids, labels, position_ids=None):
    """The loss summed over trained tokens, one row, as transformers' own forward sees it."""
    places = None if position_ids is None else torch.tensor([position_ids])
    logits = model(input_ids=torch.tensor([ids]), position_ids=places, use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(labels)[1:], reduction="sum")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("strategy", ["best_fit", "wrapped"])
def test_packed_rows_have_the_loss_and_gradients_of_their_documents_alone(attention, strategy):
    dataset = documents(5, 9, 3, 7, 11, 6, untrained=[2])
    rows = pack(dataset, Packing(strategy=strategy))
    alone, packed = (tiny_model("llama", attn_implementation=attention) for _ in range(2))

    loss_packed = sum(summed_loss(packed, r["input_ids"], r["labels"], r["position_ids"]) for r in rows)
    loss_alone = sum(summed_loss(alone, *piece) for row in rows for piece in pieces(row))
    loss_packed.backward()
    loss_alone.backward()

    torch.testing.assert_close(loss_packed, loss_alone, rtol=1e-5, atol=1e-5)
    for one, other in zip(packed.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def enter(model, rows=None, **train):
    rows = pack(documents(5, 9, 3, 7, 11, 6)) if rows is None else rows
    with Packing().training_context(model, tiny_config(train=train), rows, PadCollator(2)):
        pass


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
def test_models_that_isolate_packed_documents_pass(architecture, attention):
    enter(tiny_model(architecture, attn_implementation=attention))


def test_a_model_with_trainable_tokens_passes():
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(target_modules="all-linear", trainable_token_indices={"embed_tokens": [318, 319]})
    enter(peft.get_peft_model(tiny_model("llama"), settings))


def test_a_model_that_leaks_between_documents_is_refused():
    with pytest.raises(ConfigError, match="model type mamba does not isolate packed documents"):
        enter(tiny_model("mamba"))


def test_a_leak_is_found_in_half_precision(caplog):
    caplog.set_level("INFO", "sftkit")
    enter(tiny_model("llama").bfloat16())
    assert not caplog.messages
    enter(tiny_model("opt").bfloat16())
    assert "opt ignores document boundaries" in caplog.text


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_model_that_ignores_document_boundaries_gets_a_mask(attention, adapted, caplog):
    model = tiny_model("opt", attn_implementation=attention).eval()
    if adapted:
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).eval()
    ids, places = torch.arange(3, 19)[None], torch.tensor([[*range(9), *range(7)]])
    expected = model(input_ids=ids[:, 9:]).logits
    with caplog.at_level("INFO", "sftkit"), isolated(model, trials_of(model, None, None, 2, 16)):
        packed = model(input_ids=ids, position_ids=places, use_cache=False).logits
    torch.testing.assert_close(packed[:, 9:], expected, rtol=1e-4, atol=1e-6)
    assert "opt ignores document boundaries" in caplog.text
    leaking = model(input_ids=ids, position_ids=places, use_cache=False).logits
    assert not torch.allclose(leaking[:, 9:], expected, rtol=1e-4, atol=1e-6)


class IsolatesSingleRowsOnly(torch.nn.Module):
    """A model that reads its positions in batches of one row only, as flash attention does."""

    def __init__(self):
        super().__init__()
        self.inner = tiny_model("llama")
        self.config = self.inner.config

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def forward(self, input_ids, position_ids=None, use_cache=False):
        whole = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        return self.inner(input_ids, position_ids=position_ids if len(input_ids) == 1 else whole, use_cache=use_cache)


def test_isolation_is_proved_with_the_batch_size_of_training(caplog):
    caplog.set_level("INFO", "sftkit")
    enter(IsolatesSingleRowsOnly(), per_device_train_batch_size=1)
    assert not caplog.messages
    enter(IsolatesSingleRowsOnly(), per_device_train_batch_size=4)
    assert "ignores document boundaries" in caplog.text


def test_a_model_without_position_ids_is_refused():
    class Blind(IsolatesSingleRowsOnly):
        def forward(self, input_ids):
            return self.inner(input_ids)

    with pytest.raises(ConfigError, match="takes no position_ids"):
        enter(Blind())


def test_the_proof_works_with_an_adapter():
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])

    enter(peft.get_peft_model(tiny_model("llama"), adapter))
    adapter = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["x_proj"])
    with pytest.raises(ConfigError, match="mamba"):
        enter(peft.get_peft_model(tiny_model("mamba"), adapter))


def test_the_proof_changes_no_mode_gradient_or_random_state():
    model = tiny_model("gpt2", embd_pdrop=0.5).train()
    model.transformer.h[0].eval()
    state, modes = torch.get_rng_state(), [module.training for module in model.modules()]

    enter(model)

    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_packing_from_disk_equals_packing_from_memory(monkeypatch):
    from sftkit.data import store

    dataset = documents(5, 9, 3, 16, 2, 7, 11, 4)
    held = pack(dataset)
    monkeypatch.setattr(store, "HELD", 12)
    spooled = pack(dataset)
    assert [pieces(row) for row in spooled] == [pieces(row) for row in held]
    assert len(held) > 1
