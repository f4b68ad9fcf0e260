"""What docs/comparison.md says of TRL's SFTTrainer, run with the version that it names."""

from __future__ import annotations

import warnings

import pytest
from datasets import Dataset

from sftkit.testing import CHATML, tiny_model, tiny_tokenizer

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.slow
TEXT = [{"text": "hello world " * 5}] * 8


@pytest.fixture
def trainer(tmp_path):
    """Makes a trainer of TRL for these rows, on a tiny model."""

    def make(rows, **arguments):
        fixed = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "max_steps": 1}
        args = trl.SFTConfig(output_dir=str(tmp_path), **{**fixed, "max_length": 64, **arguments})
        return trl.SFTTrainer(
            tiny_model(),
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tiny_tokenizer(chat_template=CHATML),
        )

    return make


def test_the_page_names_the_version(root):
    assert f"(`SFTTrainer`) | {trl.__version__} |" in (root / "docs" / "comparison.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("packing", "kept"), [(True, 8), (False, 0)])
def test_rows_cut_to_their_prompts_are_kept_if_packed(trainer, packing, kept):
    made = trainer([{"prompt": "word " * 200, "completion": " yes"}] * 8, packing=packing)
    assert len(made.train_dataset) == kept
    if packing:
        assert made.train().training_loss == 0.0


def test_completion_only_on_text_trains_every_token_without_a_warning(trainer):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        row = trainer(TEXT, completion_only_loss=True).train_dataset[0]
    assert -100 not in row["labels"]
    assert not [each for each in caught if "completion" in str(each.message)]


def test_conversations_are_trained_on_every_token_by_default(trainer):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    assert -100 not in trainer([{"messages": messages}] * 8).train_dataset[0]["labels"]


def test_neftune_is_scaled_by_the_length_of_the_row(trainer):
    def noise(**arguments):
        made = trainer(TEXT * 8, neftune_noise_alpha=5, per_device_train_batch_size=1, max_length=256, **arguments)
        plain, sizes = made.model.get_input_embeddings().weight.detach().clone(), []
        step = made.training_step

        def measured(model, inputs, *rest):
            ids = inputs["input_ids"]
            sizes.append((ids.shape[1], (model.get_input_embeddings()(ids) - plain[ids]).abs().max().item()))
            return step(model, inputs, *rest)

        made.training_step = measured
        made.train()
        return sizes[0]

    (length, alone), (row, packed) = noise(), noise(packing=True)
    assert row > 3 * length
    assert alone / packed == pytest.approx((row / length) ** 0.5, rel=0.1)
