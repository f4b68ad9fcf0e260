"""The code blocks of TRL's page on its SFT trainer (2024), line by line, with ``sftkit.trl`` in the place of ``trl``.

Hub names lead to tiny local models and data; see `conftest.py`. Where a block is a fragment, what it leaves out stands
before or behind it. What the versions of today do not take is mended with a remark.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sftkit.requirements import has_gpu

IGNORED = -100


def trained_texts(trainer):
    """What is trained of each row, sorted."""
    found = []
    for batch in trainer.get_train_dataloader():
        found += [trainer.tokenizer.decode(labels[labels != IGNORED]) for labels in batch["labels"]]
    return sorted(found)


def write_rows(path, rows):
    path.parent.mkdir()
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def has_learnt(trainer, name):
    """Whether the weights are other ones than those of the checkpoint."""
    from transformers import AutoModelForCausalLM

    before = AutoModelForCausalLM.from_pretrained(name).state_dict()
    after = trainer.model.state_dict()
    assert trainer.state.log_history[-1]["train_loss"] > 0
    return any(not value.equal(after[key]) for key, value in before.items() if key in after)


def saved_adapter(trainer):
    """The adapter that ``save_model`` writes."""
    trainer.save_model()
    directory = Path(trainer.args.output_dir)
    assert not (directory / "model.safetensors").exists()
    return load_file(directory / "adapter_model.safetensors")


# Quick start


def test_quick_start(workplace):
    from datasets import load_dataset

    from sftkit.trl import SFTConfig, SFTTrainer

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


def test_the_default_of_max_seq_length(workplace):
    from datasets import load_dataset
    from transformers import AutoTokenizer

    from sftkit.trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")
    tokenizer = AutoTokenizer.from_pretrained("facebook/opt-350m", model_max_length=48)
    for given, length in ((None, 1024), (tokenizer, 48)):
        args = SFTConfig(dataset_text_field="text", output_dir="tmp")
        trainer = SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=args, tokenizer=given)
        assert trainer.args.max_seq_length == length
        assert max(len(row["input_ids"]) for row in trainer.train_dataset) <= length
    assert max(len(row["input_ids"]) for row in trainer.train_dataset) == 48


def test_a_model_built_outside(workplace):
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM

    from sftkit.trl import SFTConfig, SFTTrainer

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


# Train on completions only


def test_completions_only(workplace):
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sftkit.trl import DataCollatorForCompletionOnlyLM, SFTConfig, SFTTrainer

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


def test_completions_only_and_packing_exclude_each_other(workplace):
    from datasets import load_dataset
    from transformers import AutoTokenizer

    from sftkit.trl import DataCollatorForCompletionOnlyLM, SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")
    collator = DataCollatorForCompletionOnlyLM("plot", tokenizer=AutoTokenizer.from_pretrained("facebook/opt-350m"))
    args = SFTConfig(packing=True, dataset_text_field="text")
    with pytest.raises(ValueError, match="not compatible with the `packing` argument"):
        SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=args, data_collator=collator)


def test_the_assistants_turns_only(workplace):
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sftkit.trl import DataCollatorForCompletionOnlyLM, SFTConfig, SFTTrainer

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


def test_an_eos_that_is_the_pad_token_too_is_told_and_trained(workplace):
    from transformers import AutoTokenizer

    from sftkit.trl import DataCollatorForCompletionOnlyLM

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
        pytest.skip("the tokenizer of Llama 2 is not here")


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
    told = "('▁Hello', 15043), ('<0x0A>', 13), ('<0x0A>', 13), ('##', 2277), ('#', 29937), ('▁Ass', 4007), "
    assert told + "('istant', 22137), (':', 29901)" in whole
    assert alone == "[('▁###', 835), ('▁Ass', 4007), ('istant', 22137), (':', 29901)]"


def chat_trainer(template):
    """A trainer on dialogues, and its collator, which is made with this template."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    from sftkit.trl import DataCollatorForCompletionOnlyLM, SFTConfig, SFTTrainer

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
def test_token_ids_cut_out_of_a_context_are_found():
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


# Add Special Tokens for Chat Format


def test_setup_chat_format(workplace):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sftkit.trl import setup_chat_format

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


def test_the_number_of_embeddings_is_rounded_up(workplace):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sftkit.trl import setup_chat_format

    model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m")
    tokenizer = AutoTokenizer.from_pretrained("facebook/opt-350m")
    model, tokenizer = setup_chat_format(model, tokenizer, resize_to_multiple_of=64)

    assert len(model.get_input_embeddings().weight) % 64 == 0


# Dataset format support


@pytest.mark.parametrize("name", ["json", "hub"])
def test_conversations_are_trained_packed(workplace, name):
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sftkit.trl import SFTConfig, SFTTrainer, setup_chat_format

    # OPT has no chat template of its own: the section before gives it one
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

    from sftkit.trl import SFTConfig, SFTTrainer

    dataset = Dataset.from_list([{"prompt": "<prompt text>", "completion": "<ideal generated text>"}] * 3)
    trainer = SFTTrainer("HuggingFaceH4/zephyr-7b-beta", args=SFTConfig(), train_dataset=dataset)
    trainer.train()

    text = trainer.tokenizer.decode(trainer.train_dataset[0]["input_ids"])
    assert text == "<|user|>\n<prompt text></s>\n<|assistant|>\n<ideal generated text></s>\n"


def test_conversations_without_a_chat_template_are_told(workplace):
    from datasets import load_dataset

    from sftkit.trl import SFTConfig, SFTTrainer

    dataset = load_dataset("philschmid/dolly-15k-oai-style", split="train")
    with pytest.raises(ValueError, match="chat template"):
        SFTTrainer("facebook/opt-350m", args=SFTConfig(packing=True), train_dataset=dataset)


# Format your input prompts


def test_a_formatting_function_of_batches(workplace):
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM

    from sftkit.trl import SFTConfig, SFTTrainer

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


def test_a_formatting_function_that_makes_no_list_of_a_batch_is_refused(workplace):
    from datasets import load_dataset

    from sftkit.trl import SFTConfig, SFTTrainer

    dataset = load_dataset("json", data_files="questions.jsonl", split="train")
    with pytest.raises(ValueError, match="should return a list of processed strings"):
        SFTTrainer(
            "facebook/opt-350m",
            args=SFTConfig(),
            train_dataset=dataset,
            formatting_func=lambda example: f"### Question: {example['question']}",
        )


# Packing dataset (ConstantLengthDataset)


def test_packing(workplace):
    from datasets import load_dataset

    from sftkit.trl import SFTConfig, SFTTrainer

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
def test_evaluation_sets_are_packed_unless_said_otherwise(workplace, eval_packing, rows):
    from datasets import load_dataset

    from sftkit.trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")
    args = SFTConfig(packing=True, eval_packing=eval_packing, dataset_text_field="text")
    trainer = SFTTrainer("EleutherAI/gpt-neo-125m", train_dataset=dataset, eval_dataset=dataset, args=args)

    assert len(trainer.train_dataset) == 1
    assert len(trainer.eval_dataset) == rows
    assert trainer.evaluate()["eval_loss"] > 0


def test_max_steps_go_through_packed_data_again_and_again(workplace):
    from datasets import load_dataset

    from sftkit.trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")
    args = SFTConfig(packing=True, max_steps=3, max_seq_length=512, dataset_text_field="text")
    with pytest.warns(UserWarning, match="max_steps"):
        trainer = SFTTrainer("EleutherAI/gpt-neo-125m", train_dataset=dataset, args=args)
    trainer.train()

    assert trainer.state.global_step == 3


def test_packing_with_a_formatting_function(workplace):
    from datasets import load_dataset

    from sftkit.trl import SFTConfig, SFTTrainer

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


def test_constant_length_dataset(workplace):
    from datasets import load_dataset
    from transformers import AutoTokenizer

    from sftkit.trl import ConstantLengthDataset

    dataset = load_dataset("stanfordnlp/imdb", split="train")
    tokenizer = AutoTokenizer.from_pretrained("facebook/opt-350m")
    pieces = ConstantLengthDataset(tokenizer, dataset, dataset_text_field="text", seq_length=128, shuffle=False)

    rows = list(pieces)
    assert {len(row["input_ids"]) for row in rows} == {128}
    text = "".join(tokenizer.decode(row["input_ids"]) for row in rows)
    assert "".join(f"</s>{text}</s>" for text in dataset["text"]).startswith(text)


# Control over the pretrained model


def test_arguments_for_from_pretrained(workplace):
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM

    from sftkit.trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")

    model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m", torch_dtype=torch.bfloat16)

    sft_config = SFTConfig(
        model_init_kwargs={
            "torch_dtype": "bfloat16",
        },
        output_dir="tmp",
    )
    trainer = SFTTrainer(
        "facebook/opt-350m",
        train_dataset=dataset,
        args=sft_config,
    )

    trainer.train()

    assert trainer.model.dtype == model.dtype == torch.bfloat16
    assert has_learnt(trainer, "facebook/opt-350m")
    with pytest.raises(ValueError, match="already instantiated"):
        SFTTrainer(model, train_dataset=dataset, args=sft_config)


# Training adapters


def test_adapters(workplace):
    from datasets import load_dataset
    from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
    from transformers import AutoModelForCausalLM

    from sftkit.trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")

    peft_config = LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.05,
        bias="none",
        task_type="CAUSAL_LM",
    )

    trainer = SFTTrainer(
        "EleutherAI/gpt-neo-125m",
        train_dataset=dataset,
        args=SFTConfig(dataset_text_field="text", per_device_train_batch_size=4, max_seq_length=512, output_dir="tmp"),
        peft_config=peft_config,
    )

    trainer.train()

    saved = saved_adapter(trainer)
    assert saved
    assert all(".q_proj." in name or ".v_proj." in name for name in saved)  # where peft itself puts LoRA in GPT-Neo
    assert all(value.any() for name, value in saved.items() if "lora_B" in name)  # which begin as zeros
    base = AutoModelForCausalLM.from_pretrained("EleutherAI/gpt-neo-125m").state_dict()
    held = trainer.model.get_base_model().state_dict()
    assert all(value.equal(held[name]) for name, value in base.items() if name in held)
    assert AutoPeftModelForCausalLM.from_pretrained("tmp")

    # an adapter is trained on where the PeftModel is loaded outside
    model = AutoModelForCausalLM.from_pretrained("EleutherAI/gpt-neo-125m")
    model = PeftModel.from_pretrained(model, "tmp", is_trainable=True)
    args = SFTConfig(dataset_text_field="text", per_device_train_batch_size=4, max_seq_length=512, output_dir="on")
    trainer = SFTTrainer(model, train_dataset=dataset, args=args)
    trainer.train()

    further = saved_adapter(trainer)
    assert further.keys() == saved.keys()
    assert all(not value.equal(further[name]) for name, value in saved.items() if "lora_B" in name)


# Training adapters with base 8 bit models


def test_adapters_on_a_base_in_8_bits(workplace):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from sftkit.trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")
    peft_config = LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.05,
        bias="none",
        task_type="CAUSAL_LM",
    )

    model = AutoModelForCausalLM.from_pretrained(
        "EleutherAI/gpt-neo-125m",
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),  # load_in_8bit=True before transformers 5
        device_map="auto",
    )

    trainer = SFTTrainer(
        model,
        train_dataset=dataset,
        args=SFTConfig(),
        peft_config=peft_config,
    )

    trainer.train()

    assert any(isinstance(module, bitsandbytes.nn.Linear8bitLt) for module in trainer.model.modules())
    assert all(value.any() for name, value in saved_adapter(trainer).items() if "lora_B" in name)


# Using Flash Attention and Flash Attention 2


def test_flash_attention_1(workplace):
    from datasets import load_dataset

    from sftkit.trl import SFTConfig, SFTTrainer

    # its kernel knows no padding: "you can only use that feature when setting packing=True"
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    sft_config = SFTConfig(packing=True, dataset_text_field="text")
    trainer = SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=sft_config)

    with torch.backends.cuda.sdp_kernel(enable_flash=True, enable_math=False, enable_mem_efficient=False):
        trainer.train()

    assert has_learnt(trainer, "facebook/opt-350m")


@pytest.mark.skipif(has_gpu(), reason="what a missing GPU is told as")
@pytest.mark.parametrize("load_in_4bit", [True, False])
def test_flash_attention_2_tells_what_is_missing(workplace, load_in_4bit):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model_id = "mistralai/Mistral-7B-v0.1"
    with pytest.raises(ImportError, match="FlashAttention2"):
        AutoModelForCausalLM.from_pretrained(
            model_id,
            # load_in_4bit=True before transformers 5
            quantization_config=BitsAndBytesConfig(load_in_4bit=True) if load_in_4bit else None,
            attn_implementation="flash_attention_2",
        )


# Using model creation utility


def test_the_utility_for_models(workplace):
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM

    from sftkit.trl import (
        ModelConfig,
        SFTConfig,
        SFTTrainer,
        get_kbit_device_map,
        get_peft_config,
        get_quantization_config,
    )

    training_args = SFTConfig(dataset_text_field="text", output_dir="tmp")
    model_config = ModelConfig(
        model_name_or_path="facebook/opt-350m",  # the page lacks this comma
        attn_implementation=None,  # or "flash_attention_2"
    )
    torch_dtype = (
        model_config.torch_dtype
        if model_config.torch_dtype in ["auto", None]
        else getattr(torch, model_config.torch_dtype)
    )
    quantization_config = get_quantization_config(model_config)
    model_kwargs = dict(  # noqa: C408
        revision=model_config.model_revision,
        trust_remote_code=model_config.trust_remote_code,
        attn_implementation=model_config.attn_implementation,
        torch_dtype=torch_dtype,
        use_cache=False if training_args.gradient_checkpointing else True,  # noqa: SIM211
        device_map=get_kbit_device_map() if quantization_config is not None else None,
        quantization_config=quantization_config,
    )
    model = AutoModelForCausalLM.from_pretrained(model_config.model_name_or_path, **model_kwargs)
    trainer = SFTTrainer(
        args=training_args,
        train_dataset=load_dataset("stanfordnlp/imdb", split="train"),
        model=model_config.model_name_or_path,
        peft_config=get_peft_config(model_config),
    )
    trainer.train()

    assert quantization_config is None
    assert has_learnt(trainer, "facebook/opt-350m")
    assert model.config._name_or_path == "facebook/opt-350m"


def test_the_utility_for_models_in_8_bits_with_an_adapter(workplace):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM

    from sftkit.trl import (
        ModelConfig,
        SFTConfig,
        SFTTrainer,
        get_kbit_device_map,
        get_peft_config,
        get_quantization_config,
    )

    model_config = ModelConfig(model_name_or_path="facebook/opt-350m", load_in_8bit=True, use_peft=True, lora_r=4)
    model = AutoModelForCausalLM.from_pretrained(
        model_config.model_name_or_path,
        device_map=get_kbit_device_map(),
        quantization_config=get_quantization_config(model_config),
    )
    trainer = SFTTrainer(
        model,
        args=SFTConfig(dataset_text_field="text", output_dir="tmp"),
        train_dataset=load_dataset("stanfordnlp/imdb", split="train"),
        peft_config=get_peft_config(model_config),
    )
    trainer.train()

    assert any(isinstance(module, bitsandbytes.nn.Linear8bitLt) for module in trainer.model.modules())
    assert {min(value.shape) for value in saved_adapter(trainer).values()} == {4}


def test_a_script_with_arguments_as_trls_own(workplace):
    """As examples/scripts/sft.py, to which the page leads: three groups of arguments, from file and command line."""
    from datasets import load_dataset

    from sftkit.trl import ModelConfig, SFTConfig, SFTScriptArguments, SFTTrainer, TrlParser, get_peft_config

    write_rows(workplace / "data" / "test.jsonl", [{"text": f"Film {number} was long."} for number in range(4)])
    (workplace / "data" / "train.jsonl").symlink_to(workplace / "stanfordnlp" / "imdb" / "train.jsonl")
    (workplace / "sft.yaml").write_text("model_name_or_path: EleutherAI/gpt-neo-125m\nmax_seq_length: 64\nlora_r: 8\n")
    command = "--config sft.yaml --dataset_name data --dataset_text_field text --output_dir tmp --use_peft --lora_r 4"
    parser = TrlParser((SFTScriptArguments, SFTConfig, ModelConfig))
    args, training_args, model_config = parser.parse_args_and_config([*command.split(), "--eval_strategy", "epoch"])

    raw_datasets = load_dataset(args.dataset_name)
    trainer = SFTTrainer(
        model=model_config.model_name_or_path,
        args=training_args,
        train_dataset=raw_datasets[args.dataset_train_split],
        eval_dataset=raw_datasets[args.dataset_test_split],
        peft_config=get_peft_config(model_config),
    )
    trainer.train()

    assert [entry["epoch"] for entry in trainer.state.log_history if "eval_loss" in entry] == [1, 2, 3]
    assert max(len(row["input_ids"]) for row in trainer.train_dataset) == 64
    assert {min(value.shape) for value in saved_adapter(trainer).values()} == {4}


# Enhance the model's performances using NEFTune


def test_neftune(workplace):
    from datasets import load_dataset

    from sftkit.trl import SFTConfig, SFTTrainer

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
    assert not plain.model.get_input_embeddings().weight.equal(embedding.weight)  # and was there


# Accelerate fine-tuning 2x using unsloth


def stand_in():
    """A module with unsloth's `FastLanguageModel`, made of transformers and peft, and the arguments that it got."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    asked = {}

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(model_name, **options):
            asked.update(options)
            name = "mistralai/Mistral-7B-v0.1"
            return AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)

        @staticmethod
        def get_peft_model(model, r, target_modules, lora_alpha, lora_dropout, bias, **options):
            asked.update(options)
            config = LoraConfig(
                r=r,
                target_modules=target_modules,
                lora_alpha=lora_alpha,
                lora_dropout=lora_dropout,
                bias=bias,
                task_type="CAUSAL_LM",
            )
            return get_peft_model(model, config)

    module = types.ModuleType("unsloth")
    module.FastLanguageModel, module.asked = FastLanguageModel, asked
    return module


@pytest.mark.skipif(has_gpu(), reason="what a missing GPU is told as")
def test_unsloth_tells_what_is_missing(workplace):
    from sftkit import ConfigError, Pipeline
    from sftkit_plugins.unsloth import Unsloth

    with pytest.raises((ImportError, NotImplementedError)):
        from unsloth import FastLanguageModel  # noqa: F401
    with pytest.raises(ConfigError, match="it needs a GPU, and none is visible here"):
        Pipeline(model="unsloth/mistral-7b", data="stanfordnlp/imdb", plugins=[Unsloth(load_in_4bit=True)]).run()


def test_a_model_of_unsloth_is_trained_as_it_is(workplace, monkeypatch):
    """Unsloth itself needs a GPU; what stands in its place here makes models of the same kinds."""
    monkeypatch.setitem(sys.modules, "unsloth", stand_in())
    from datasets import load_dataset
    from unsloth import FastLanguageModel

    from sftkit.trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")

    max_seq_length = 2048  # Supports automatic RoPE Scaling, so choose any number

    # Load model
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name="unsloth/mistral-7b",
        max_seq_length=max_seq_length,
        dtype=None,  # None for auto detection. Float16 for Tesla T4, V100, Bfloat16 for Ampere+
        load_in_4bit=True,  # Use 4bit quantization to reduce memory usage. Can be False
        # token = "hf_...", # use one if using gated models like meta-llama/Llama-2-7b-hf
    )

    # Do model patching and add fast LoRA weights
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        target_modules=[
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ],
        lora_alpha=16,
        lora_dropout=0,  # Dropout = 0 is currently optimized
        bias="none",  # Bias = "none" is currently optimized
        use_gradient_checkpointing=True,
        random_state=3407,
    )

    args = SFTConfig(
        output_dir="./output",
        max_seq_length=max_seq_length,
        dataset_text_field="text",
    )

    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=dataset,
    )
    trainer.train()

    assert trainer.model is model
    assert tokenizer.get_vocab() == trainer.tokenizer.get_vocab()
    assert all(value.any() for name, value in saved_adapter(trainer).items() if "lora_B" in name)


# Liger-Kernel


@pytest.mark.skipif(has_gpu(), reason="what a missing GPU is told as")
def test_liger_tells_what_is_missing(workplace):
    from datasets import load_dataset

    from sftkit.trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")
    config = SFTConfig(
        use_liger=True,
    )
    with pytest.raises(ValueError, match="plugin liger: it needs a GPU"):
        SFTTrainer("mistralai/Mistral-7B-v0.1", train_dataset=dataset, args=config)


LIGER = """
import interpreter  # before everything that imports triton
import json

interpreter.install()
from datasets import load_dataset
from sftkit.trl import SFTConfig, SFTTrainer

dataset = load_dataset("stanfordnlp/imdb", split="train")
losses = []
for use_liger in (False, True):
    config = SFTConfig(
        use_liger=use_liger,
        dataset_text_field="text",
        max_seq_length=32,
        per_device_train_batch_size=2,
        logging_steps=1,
        max_steps=2,
        use_cpu=True,
    )
    trainer = SFTTrainer("mistralai/Mistral-7B-v0.1", train_dataset=dataset, args=config)
    trainer.train()
    losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
print(json.dumps(losses))
"""


@pytest.mark.slow
def test_liger_gives_the_losses_of_a_run_without_it(workplace, root):
    """Its kernels run in a process of their own, under Triton's interpreter."""
    pytest.importorskip("liger_kernel")
    path = str(root / "tests" / "plugins" / "liger")
    variables = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    command = [sys.executable, "-c", LIGER]
    done = subprocess.run(command, cwd=workplace, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]

    without, with_liger = json.loads(done.stdout.splitlines()[-1])
    assert len(without) == 2
    assert with_liger == pytest.approx(without, rel=1e-4)


# Best practices


def test_batches_are_padded_to_their_longest_row(workplace):
    """TRL's page says that rows are padded to ``max_seq_length``; neither TRL 0.11 nor sftkit does."""
    from datasets import load_dataset

    from sftkit.trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")
    args = SFTConfig(dataset_text_field="text", per_device_train_batch_size=4, max_seq_length=512)
    trainer = SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=args)

    for batch in trainer.get_train_dataloader():
        lengths = batch["attention_mask"].sum(1)
        assert batch["input_ids"].shape[1] == lengths.max() < 512
        assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()


def test_a_peft_model_on_8_bits_prepared_outside(workplace):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from datasets import load_dataset
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from sftkit.trl import SFTConfig, SFTTrainer

    quantized = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained("EleutherAI/gpt-neo-125m", quantization_config=quantized)
    model = prepare_model_for_kbit_training(
        model, use_gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    model = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM"))
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    trainer = SFTTrainer(model, train_dataset=dataset, args=SFTConfig(dataset_text_field="text"))
    trainer.train()

    assert any(isinstance(module, bitsandbytes.nn.Linear8bitLt) for module in trainer.model.modules())
    assert all(value.any() for name, value in saved_adapter(trainer).items() if "lora_B" in name)


def test_a_base_in_8_bits_by_its_name(workplace):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from datasets import load_dataset
    from peft import LoraConfig

    from sftkit.trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        "EleutherAI/gpt-neo-125m",
        train_dataset=load_dataset("stanfordnlp/imdb", split="train"),
        args=SFTConfig(dataset_text_field="text", model_init_kwargs={"load_in_8bit": True}),
        peft_config=LoraConfig(r=4, task_type="CAUSAL_LM"),
    )
    trainer.train()

    assert any(isinstance(module, bitsandbytes.nn.Linear8bitLt) for module in trainer.model.modules())
    assert all(value.any() for name, value in saved_adapter(trainer).items() if "lora_B" in name)


# Multi-GPU training


def test_the_model_on_the_device_of_its_process(workplace):
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


def test_accumulated_gradients_are_those_of_one_batch(workplace):
    """The page advises 4 steps of accumulation before a conversion to GPTQ; they change nothing of what is learnt."""
    from datasets import load_dataset

    from sftkit.trl import SFTConfig, SFTTrainer

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
