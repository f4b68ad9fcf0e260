"""The blocks of TRL's page on its SFT trainer, run with ``sftkit_trl``: training on completions only.

Hub names lead to tiny local models and data (`conftest.py`). Code around a block completes it where it is a fragment;
a comment marks what current library versions need written differently.
"""

from __future__ import annotations

import pytest

IGNORED = -100


# Train on completions only


def test_only_completions_are_trained(workplace, trained_texts, has_learnt):
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sftkit_trl import DataCollatorForCompletionOnlyLM, SFTConfig, SFTTrainer

    dataset = load_dataset("lucasmccabe-lmi/CodeAlpaca-20k", split="train")

    model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m")
    tokenizer = AutoTokenizer.from_pretrained("facebook/opt-350m")

    def formatting_prompts_func(example):
        output_texts = []
        for i in range(len(example["instruction"])):
            text = f"### Question: {example['instruction'][i]}\n ### Answer: {example['output'][i]}"
            output_texts.append(text)
        return output_texts

    response_template = " ### Answer:"
    collator = DataCollatorForCompletionOnlyLM(response_template, tokenizer=tokenizer)

    trainer = SFTTrainer(
        model,
        train_dataset=dataset,
        args=SFTConfig(per_device_train_batch_size=16, output_dir="tmp"),
        formatting_func=formatting_prompts_func,
        data_collator=collator,
    )

    trainer.train()

    assert trained_texts(trainer) == sorted(f" {row['output']}" for row in dataset)
    assert has_learnt(trainer, "facebook/opt-350m")


def test_completion_only_training_rejects_packing(workplace):
    from datasets import load_dataset
    from transformers import AutoTokenizer

    from sftkit_trl import DataCollatorForCompletionOnlyLM, SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")
    collator = DataCollatorForCompletionOnlyLM("plot", tokenizer=AutoTokenizer.from_pretrained("facebook/opt-350m"))
    args = SFTConfig(packing=True, dataset_text_field="text")
    with pytest.raises(ValueError, match="not compatible with the `packing` argument"):
        SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=args, data_collator=collator)


def test_only_the_assistants_turns_are_trained(workplace, trained_texts, has_learnt):
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sftkit_trl import DataCollatorForCompletionOnlyLM, SFTConfig, SFTTrainer

    dataset = load_dataset("timdettmers/openassistant-guanaco", split="train")

    model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m")
    tokenizer = AutoTokenizer.from_pretrained("facebook/opt-350m")

    instruction_template = "### Human:"
    response_template = "### Assistant:"
    collator = DataCollatorForCompletionOnlyLM(
        instruction_template=instruction_template, response_template=response_template, tokenizer=tokenizer, mlm=False
    )

    trainer = SFTTrainer(
        model,
        args=SFTConfig(
            dataset_text_field="text",
            per_device_train_batch_size=4,
            max_seq_length=512,
            output_dir="tmp",
        ),
        train_dataset=dataset,
        data_collator=collator,
    )

    trainer.train()

    answers = [
        "".join(part.partition("### Human:")[0] for part in text.split("### Assistant:")[1:])
        for text in dataset["text"]
    ]
    assert trained_texts(trainer) == sorted(answers)
    assert has_learnt(trainer, "facebook/opt-350m")


def test_an_eos_that_is_also_the_pad_token_warns_and_is_trained(workplace):
    from transformers import AutoTokenizer

    from sftkit_trl import DataCollatorForCompletionOnlyLM

    tokenizer = AutoTokenizer.from_pretrained("facebook/opt-350m", pad_token="</s>")
    templates = {"instruction_template": "### Human:", "response_template": "### Assistant:"}
    with pytest.warns(UserWarning, match="pad_token_id and eos_token_id values of this tokenizer are identical"):
        collator = DataCollatorForCompletionOnlyLM(**templates, tokenizer=tokenizer, mlm=False)

    texts = ["### Human: Hi### Assistant: Hello</s>", "### Human: Hello, who are you?### Assistant: Me</s>"]
    batch = collator([tokenizer(text) for text in texts])
    assert [tokenizer.decode(labels[labels != IGNORED]) for labels in batch["labels"]] == [" Hello</s>", " Me</s>"]


# Using token_ids directly for response_template


@pytest.fixture
def llama(workplace):
    if not (workplace / "meta-llama").exists():
        pytest.skip("the tokenizer of Llama 2 is not available")


@pytest.mark.usefixtures("llama")
def test_tokens_of_llama_2_depend_on_their_context(capsys):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("meta-llama/Llama-2-7b-hf")

    def print_tokens_with_ids(txt):
        tokens = tokenizer.tokenize(txt, add_special_tokens=False)
        token_ids = tokenizer.encode(txt, add_special_tokens=False)
        print(list(zip(tokens, token_ids)))  # noqa: B905

    prompt = """### User: Hello\n\n### Assistant: Hi, how can I help you?"""
    print_tokens_with_ids(prompt)

    response_template = "### Assistant:"
    print_tokens_with_ids(response_template)

    whole, alone = capsys.readouterr().out.splitlines()
    expected = "('▁Hello', 15043), ('<0x0A>', 13), ('<0x0A>', 13), ('##', 2277), ('#', 29937), ('▁Ass', 4007), "
    assert expected + "('istant', 22137), (':', 29901)" in whole
    assert alone == "[('▁###', 835), ('▁Ass', 4007), ('istant', 22137), (':', 29901)]"


def chat_trainer(template):
    """A trainer on dialogues with a completion-only collator for this template."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    from sftkit_trl import DataCollatorForCompletionOnlyLM, SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained("meta-llama/Llama-2-7b-hf")
    tokenizer.pad_token = tokenizer.unk_token
    data_collator = DataCollatorForCompletionOnlyLM(template, tokenizer=tokenizer)
    return SFTTrainer(
        "meta-llama/Llama-2-7b-hf",
        tokenizer=tokenizer,
        train_dataset=load_dataset("json", data_files="dialogues.jsonl", split="train"),
        args=SFTConfig(dataset_text_field="text", per_device_train_batch_size=16, output_dir="tmp"),
        data_collator=data_collator,
    )


@pytest.mark.usefixtures("llama")
def test_a_template_without_its_context_is_not_found():
    with (
        pytest.warns(UserWarning, match="Could not find response key"),
        pytest.raises(ValueError, match="nothing would be trained"),
    ):
        chat_trainer("### Assistant:").train()


@pytest.mark.usefixtures("llama")
def test_token_ids_taken_from_their_context_are_found(trained_texts):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("meta-llama/Llama-2-7b-hf")

    response_template_with_context = (
        "\n### Assistant:"  # We added context here: "\n". This is enough for this tokenizer
    )
    response_template_ids = tokenizer.encode(response_template_with_context, add_special_tokens=False)[
        2:
    ]  # Now we have it like in the dataset texts: `[2277, 29937, 4007, 22137, 29901]`

    assert response_template_ids == [2277, 29937, 4007, 22137, 29901]
    trainer = chat_trainer(response_template_ids)
    trainer.train()
    assert trained_texts(trainer) == ["Hi, how can I help you?"] * 16
