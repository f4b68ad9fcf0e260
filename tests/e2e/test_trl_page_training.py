"""The blocks of TRL's page on its SFT trainer, run with ``sftkit_trl``: quick start, NEFTune, padding and devices.

Hub names lead to tiny local models and data (`conftest.py`). Code around a block completes it where it is a fragment;
a comment marks what current library versions need written differently.
"""

from __future__ import annotations

import pytest
import torch

from sftkit.plugin.requirements import has_gpu

IGNORED = -100


# Quick start


def test_quick_start(workplace, trained_texts, has_learnt):
    from datasets import load_dataset

    from sftkit_trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")

    sft_config = SFTConfig(
        dataset_text_field="text",
        per_device_train_batch_size=4,
        max_seq_length=512,
        output_dir="tmp",
    )
    trainer = SFTTrainer(
        "facebook/opt-350m",
        train_dataset=dataset,
        args=sft_config,
    )
    trainer.train()

    assert trainer.state.global_step == 12
    assert trained_texts(trainer) == sorted(dataset["text"])
    assert has_learnt(trainer, "facebook/opt-350m")


def test_max_seq_length_defaults_to_the_tokenizers_limit_up_to_1024(workplace):
    from datasets import load_dataset
    from transformers import AutoTokenizer

    from sftkit_trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")
    tokenizer = AutoTokenizer.from_pretrained("facebook/opt-350m", model_max_length=48)
    for given, length in ((None, 1024), (tokenizer, 48)):
        args = SFTConfig(dataset_text_field="text", output_dir="tmp")
        trainer = SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=args, tokenizer=given)
        assert trainer.args.max_seq_length == length
        assert max(len(row["input_ids"]) for row in trainer.train_dataset) <= length
    assert max(len(row["input_ids"]) for row in trainer.train_dataset) == 48


def test_a_loaded_model_is_trained_in_place(workplace, has_learnt):
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM

    from sftkit_trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")

    model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m")

    sft_config = SFTConfig(
        dataset_text_field="text",
        per_device_train_batch_size=4,
        max_seq_length=512,
        output_dir="tmp",
    )

    trainer = SFTTrainer(
        model,
        train_dataset=dataset,
        args=sft_config,
    )

    trainer.train()

    assert trainer.model is model
    assert has_learnt(trainer, "facebook/opt-350m")


# Enhance the model's performances using NEFTune


def test_neftune_adds_noise_only_while_training(workplace, has_learnt):
    from datasets import load_dataset

    from sftkit_trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")

    sft_config = SFTConfig(
        neftune_noise_alpha=5,
    )
    trainer = SFTTrainer(
        "facebook/opt-350m",
        train_dataset=dataset,
        args=sft_config,
    )
    trainer.train()

    assert has_learnt(trainer, "facebook/opt-350m")
    embedding = trainer.model.get_input_embeddings()
    ids = torch.tensor([[5, 6, 7]])
    assert embedding.train()(ids).equal(embedding.weight[ids])  # the noise is gone
    plain = SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=SFTConfig(output_dir="plain"))
    plain.train()
    assert not plain.model.get_input_embeddings().weight.equal(embedding.weight)  # but was there in training


# Best practices


def test_batches_are_padded_to_their_longest_row(workplace):
    """TRL's page says that rows are padded to ``max_seq_length``, but neither TRL 0.11 nor sftkit does that."""
    from datasets import load_dataset

    from sftkit_trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")
    args = SFTConfig(dataset_text_field="text", per_device_train_batch_size=4, max_seq_length=512)
    trainer = SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=args)

    for batch in trainer.get_train_dataloader():
        lengths = batch["attention_mask"].sum(1)
        assert batch["input_ids"].shape[1] == lengths.max() < 512
        assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()


# Multi-GPU training


def test_a_model_is_loaded_on_the_device_of_its_process(workplace):
    from accelerate import PartialState
    from transformers import AutoModelForCausalLM

    device_string = PartialState().process_index
    if not has_gpu():
        with pytest.raises(RuntimeError, match=r"accelerator|NVIDIA driver"):
            AutoModelForCausalLM.from_pretrained("facebook/opt-350m", device_map={"": device_string})
        device_string = PartialState().device
    model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m", device_map={"": device_string})

    assert model.device == PartialState().device


# GPTQ conversion


def test_accumulated_gradients_equal_those_of_one_batch(workplace):
    """The page recommends 4 accumulation steps before a conversion to GPTQ; they do not change the result."""
    from datasets import load_dataset

    from sftkit_trl import SFTConfig, SFTTrainer

    ends = []
    for steps, batch in ((4, 2), (1, 8)):
        args = SFTConfig(
            dataset_text_field="text",
            gradient_accumulation_steps=steps,
            per_device_train_batch_size=batch,
            optim="sgd",
            learning_rate=0.5,
        )
        dataset = load_dataset("stanfordnlp/imdb", split="train")
        trainer = SFTTrainer("EleutherAI/gpt-neo-125m", train_dataset=dataset, args=args)
        trainer.train()
        ends.append(trainer.model.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5)
