"""The blocks of TRL's page on its SFT trainer, run with ``sftkit_trl``: formats, formatting functions and packing.

Hub names lead to tiny local models and data (`conftest.py`). Code around a block completes it where it is a fragment;
a comment marks what current library versions need written differently.
"""

from __future__ import annotations

import pytest

# Add Special Tokens for Chat Format


def test_setup_chat_format_adds_tokens_and_embeddings(workplace):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sftkit_trl import setup_chat_format

    # Load model and tokenizer
    model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m")
    tokenizer = AutoTokenizer.from_pretrained("facebook/opt-350m")
    before = len(tokenizer)

    # Set up the chat format with default 'chatml' format
    model, tokenizer = setup_chat_format(model, tokenizer)

    assert len(tokenizer) == before + 2
    assert len(model.get_input_embeddings().weight) >= len(tokenizer)
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n"


def test_embeddings_are_resized_to_a_multiple(workplace):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sftkit_trl import setup_chat_format

    model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m")
    tokenizer = AutoTokenizer.from_pretrained("facebook/opt-350m")
    model, tokenizer = setup_chat_format(model, tokenizer, resize_to_multiple_of=64)

    assert len(model.get_input_embeddings().weight) % 64 == 0


# Dataset format support


@pytest.mark.parametrize("name", ["json", "hub"])
def test_conversations_are_rendered_and_packed(workplace, name, has_learnt):
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sftkit_trl import SFTConfig, SFTTrainer, setup_chat_format

    # OPT has no chat template: the section before adds one
    model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m")
    model, tokenizer = setup_chat_format(model, AutoTokenizer.from_pretrained("facebook/opt-350m"))
    if name == "json":
        # load jsonl dataset
        dataset = load_dataset("json", data_files="path/to/dataset.jsonl", split="train")
    else:
        # load dataset from the HuggingFace Hub
        dataset = load_dataset("philschmid/dolly-15k-oai-style", split="train")

    sft_config = SFTConfig(packing=True)
    trainer = SFTTrainer(
        model,
        tokenizer=tokenizer,
        args=sft_config,
        train_dataset=dataset,
    )
    trainer.train()

    rows = trainer.train_dataset
    assert {len(row["input_ids"]) for row in rows} == {1024}
    text = "".join(tokenizer.decode(row["input_ids"]) for row in rows)
    assert "<|im_start|>user\nWhat is 0 + 1?<|im_end|>\n<|im_start|>assistant\nIt is 1.<|im_end|>\n" in text
    assert has_learnt(trainer, "facebook/opt-350m")


def test_instructions_are_rendered_with_the_chat_template(workplace):
    from datasets import Dataset

    from sftkit_trl import SFTConfig, SFTTrainer

    dataset = Dataset.from_list([{"prompt": "<prompt text>", "completion": "<ideal generated text>"}] * 3)
    trainer = SFTTrainer("HuggingFaceH4/zephyr-7b-beta", args=SFTConfig(), train_dataset=dataset)
    trainer.train()

    text = trainer.tokenizer.decode(trainer.train_dataset[0]["input_ids"])
    assert text == "<|user|>\n<prompt text></s>\n<|assistant|>\n<ideal generated text></s>\n"


def test_conversations_without_a_chat_template_are_an_error(workplace):
    from datasets import load_dataset

    from sftkit_trl import SFTConfig, SFTTrainer

    dataset = load_dataset("philschmid/dolly-15k-oai-style", split="train")
    with pytest.raises(ValueError, match="chat template"):
        SFTTrainer("facebook/opt-350m", args=SFTConfig(packing=True), train_dataset=dataset)


# Format your input prompts


def test_a_formatting_function_is_called_with_batches(workplace, trained_texts):
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM

    from sftkit_trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m")
    dataset = load_dataset("json", data_files="questions.jsonl", split="train")
    sft_config = SFTConfig()

    def formatting_prompts_func(example):
        output_texts = []
        for i in range(len(example["question"])):
            text = f"### Question: {example['question'][i]}\n ### Answer: {example['answer'][i]}"
            output_texts.append(text)
        return output_texts

    trainer = SFTTrainer(
        model,
        args=sft_config,
        train_dataset=dataset,
        formatting_func=formatting_prompts_func,
    )

    trainer.train()

    assert trained_texts(trainer) == sorted(formatting_prompts_func(dataset[:]))


def test_a_formatting_function_must_return_a_list(workplace):
    from datasets import load_dataset

    from sftkit_trl import SFTConfig, SFTTrainer

    dataset = load_dataset("json", data_files="questions.jsonl", split="train")
    with pytest.raises(ValueError, match="should return a list of processed strings"):
        SFTTrainer(
            "facebook/opt-350m",
            args=SFTConfig(),
            train_dataset=dataset,
            formatting_func=lambda example: f"### Question: {example['question']}",
        )


# Packing dataset (ConstantLengthDataset)


def test_packing_cuts_one_stream_into_full_rows(workplace, has_learnt):
    from datasets import load_dataset

    from sftkit_trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")
    sft_config = SFTConfig(
        packing=True,
        dataset_text_field="text",
    )

    trainer = SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=sft_config)

    trainer.train()

    rows = trainer.train_dataset
    assert {len(row["input_ids"]) for row in rows} == {1024}
    text = "".join(trainer.tokenizer.decode(row["input_ids"]) for row in rows)
    assert "".join(f"</s>{text}</s>" for text in dataset["text"]).startswith(text)
    assert has_learnt(trainer, "facebook/opt-350m")


@pytest.mark.parametrize(("eval_packing", "rows"), [(None, 1), (False, 16)])
def test_evaluation_sets_are_packed_unless_eval_packing_is_false(workplace, eval_packing, rows):
    from datasets import load_dataset

    from sftkit_trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")
    args = SFTConfig(packing=True, eval_packing=eval_packing, dataset_text_field="text")
    trainer = SFTTrainer("EleutherAI/gpt-neo-125m", train_dataset=dataset, eval_dataset=dataset, args=args)

    assert len(trainer.train_dataset) == 1
    assert len(trainer.eval_dataset) == rows
    assert trainer.evaluate()["eval_loss"] > 0


def test_packed_data_is_repeated_until_max_steps(workplace):
    from datasets import load_dataset

    from sftkit_trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")
    args = SFTConfig(packing=True, max_steps=3, max_seq_length=512, dataset_text_field="text")
    with pytest.warns(UserWarning, match="max_steps"):
        trainer = SFTTrainer("EleutherAI/gpt-neo-125m", train_dataset=dataset, args=args)
    trainer.train()

    assert trainer.state.global_step == 3


def test_packing_calls_the_formatting_function_with_one_row(workplace, has_learnt):
    from datasets import load_dataset

    from sftkit_trl import SFTConfig, SFTTrainer

    dataset = load_dataset("json", data_files="questions.jsonl", split="train")

    def formatting_func(example):
        text = f"### Question: {example['question']}\n ### Answer: {example['answer']}"
        return text

    sft_config = SFTConfig(packing=True)
    trainer = SFTTrainer(
        "facebook/opt-350m",
        train_dataset=dataset,
        args=sft_config,
        formatting_func=formatting_func,
    )

    trainer.train()

    text = "".join(trainer.tokenizer.decode(row["input_ids"]) for row in trainer.train_dataset)
    assert "".join(f"</s>{formatting_func(row)}</s>" for row in dataset).startswith(text)
    assert has_learnt(trainer, "facebook/opt-350m")


def test_constant_length_dataset_yields_full_rows(workplace):
    from datasets import load_dataset
    from transformers import AutoTokenizer

    from sftkit_trl import ConstantLengthDataset

    dataset = load_dataset("stanfordnlp/imdb", split="train")
    tokenizer = AutoTokenizer.from_pretrained("facebook/opt-350m")
    pieces = ConstantLengthDataset(tokenizer, dataset, dataset_text_field="text", seq_length=128, shuffle=False)

    rows = list(pieces)
    assert {len(row["input_ids"]) for row in rows} == {128}
    text = "".join(tokenizer.decode(row["input_ids"]) for row in rows)
    assert "".join(f"</s>{text}</s>" for text in dataset["text"]).startswith(text)
