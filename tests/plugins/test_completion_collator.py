"""The collator that trains only on completions, with the interface of TRL 0.11."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, Trainer, TrainingArguments

from sftkit.data.encode import encode
from sftkit.plugin.select import Choice, select
from sftkit.testing import tiny_config, tiny_model, tiny_tokenizer
from sftkit_plugins.completion_only.collator import DataCollatorForCompletionOnlyLM

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
HUMAN, ASSISTANT = "### Human:", "### Assistant:"
DIALOGUES = ["### Human: a b### Assistant: c d### Human: e### Assistant: f g h", "### Human: x### Assistant: y"]
ANSWERS = [" c d f g h", " y"]


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def collator(*templates: Any, tokenizer: Any = None, **options: Any) -> DataCollatorForCompletionOnlyLM:
    tokenizer = tokenizer if tokenizer is not None else tiny_tokenizer()
    return DataCollatorForCompletionOnlyLM(*templates, tokenizer=tokenizer, **options)


def real_tokenizer(name: str) -> Any:
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs {SHARED / name}")
    return AutoTokenizer.from_pretrained(SHARED / name)


def trained_texts(made: DataCollatorForCompletionOnlyLM, batch: Any) -> list[str]:
    return [made.tokenizer.decode(row[row != made.ignore_index]) for row in batch["labels"]]


def test_attributes_are_the_templates_and_their_ids() -> None:
    made = collator([7, 8], HUMAN, ignore_index=-1)
    assert (made.response_template, made.response_token_ids) == ([7, 8], [7, 8])
    assert (made.instruction_template, made.instruction_token_ids) == (HUMAN, ids_of(made.tokenizer, HUMAN))
    assert (made.ignore_index, made.padding_free, made.mlm) == (-1, False, False)
    assert collator(ASSISTANT).instruction_token_ids is None


def test_the_tokenizer_can_be_positional() -> None:
    tokenizer = tiny_tokenizer()
    made = DataCollatorForCompletionOnlyLM(ASSISTANT, None, tokenizer, pad_to_multiple_of=32)
    assert made.tokenizer is tokenizer
    assert made([ids_of(tokenizer, DIALOGUES[0])])["input_ids"].shape[1] % 32 == 0


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["lists", "arrays", "mappings", "encodings"])
def test_both_templates_train_every_answer(kind: str, side: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    made = collator(ASSISTANT, HUMAN, tokenizer=tokenizer)
    rows: list[Any] = [ids_of(tokenizer, text) for text in DIALOGUES]
    examples = {
        "lists": rows,
        "arrays": [np.array(row) for row in rows],
        "mappings": [{"input_ids": np.array(row), "labels": [1, 2]} for row in rows],
        "encodings": [tokenizer(text, add_special_tokens=False) for text in DIALOGUES],
    }[kind]
    batch = made(examples)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert trained_texts(made, batch) == ANSWERS
    masks = batch["attention_mask"].bool()
    assert [row[mask].tolist() for row, mask in zip(batch["input_ids"], masks, strict=True)] == rows


def test_the_response_template_alone_trains_the_last_answer() -> None:
    made = collator(ASSISTANT)
    assert trained_texts(made, made([ids_of(made.tokenizer, text) for text in DIALOGUES])) == [" f g h", " y"]


def test_real_dialogues_train_the_assistant() -> None:
    tokenizer = real_tokenizer("gpt2_tokenizer")
    tokenizer.pad_token = "!"
    texts = ["### Human: How much is 2+2? ### Assistant: It is 4. ### Human: And 3+3? ### Assistant: 6, of course."]
    # The space before a template is part of its first token, so the templates include it.
    made = collator(" ### Assistant:", " ### Human:", tokenizer=tokenizer)
    assert trained_texts(made, made([ids_of(tokenizer, f" {text}") for text in texts])) == [" It is 4. 6, of course."]


def test_token_ids_in_context_are_found_with_llama_2() -> None:
    tokenizer = real_tokenizer("llama2_tokenizer")
    row = ids_of(tokenizer, "### User: Hello\n\n### Assistant: Hi, how can I help you?")
    template = ids_of(tokenizer, "\n### Assistant:")[2:]
    assert template == [2277, 29937, 4007, 22137, 29901]
    made = collator(template, tokenizer=tokenizer)
    assert trained_texts(made, made([row])) == ["Hi, how can I help you?"]
    with pytest.warns(UserWarning, match="Could not find response key `### Assistant:`"):
        collator(ASSISTANT, tokenizer=tokenizer)([row])


def test_answers_are_trained_despite_a_different_first_instruction() -> None:
    tokenizer = real_tokenizer("gpt2_tokenizer")
    tokenizer.pad_token = "!"
    text = "## User: First instruction\n\n### Assistant: First response\n\n### User: Second instruction"
    text += "\n\n### Assistant: Second response"
    user, assistant = ids_of(tokenizer, "\n### User:")[1:], ids_of(tokenizer, "\n### Assistant:")[2:]
    made = collator(assistant, user, tokenizer=tokenizer)
    assert trained_texts(made, made([ids_of(tokenizer, text)])) == [" First response\n\n Second response"]


@pytest.mark.parametrize("templates", [(ASSISTANT,), (ASSISTANT, HUMAN)])
def test_a_row_without_the_response_template_warns_and_is_not_trained(templates: tuple[str, ...]) -> None:
    made = collator(*templates)
    rows = [ids_of(made.tokenizer, text) for text in ("### Human: cut", DIALOGUES[1])]
    message = r"Could not find response key `### Assistant:` in the following instance: ### Human: cut(.|\n)*"
    with pytest.warns(UserWarning, match=message + r"ignored in loss calculation(.|\n)*`max_seq_length`"):
        batch = made(rows)
    assert trained_texts(made, batch) == ["", " y"]


def test_a_row_without_the_instruction_template_warns_and_is_not_trained() -> None:
    made = collator(ASSISTANT, "### User:")
    with pytest.warns(UserWarning, match="Could not find instruction key `### User:` in the following instance: "):
        batch = made([ids_of(made.tokenizer, DIALOGUES[1])])
    assert trained_texts(made, batch) == [""]


def test_a_pad_token_equal_to_eos_warns_with_two_templates() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.warns(UserWarning, match="The pad_token_id and eos_token_id values of this tokenizer are identical"):
        collator(ASSISTANT, HUMAN, tokenizer=tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collator(ASSISTANT, tokenizer=tokenizer)
        collator(ASSISTANT, HUMAN)


@pytest.mark.parametrize("side", ["right", "left"])
def test_eos_is_trained_and_padding_with_eos_is_not(side: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, side
    made = collator(ASSISTANT, tokenizer=tokenizer)
    batch = made([[*ids_of(tokenizer, text), tokenizer.eos_token_id] for text in DIALOGUES])
    assert trained_texts(made, batch) == [" f g h</s>", " y</s>"]


def test_existing_padding_is_not_trained() -> None:
    made = collator(ASSISTANT)
    row = [*ids_of(made.tokenizer, DIALOGUES[1]), made.tokenizer.pad_token_id]
    assert trained_texts(made, made([row])) == [" y"]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_free_rows_are_concatenated(side: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    rows = [tokenizer(text, add_special_tokens=False) for text in DIALOGUES]
    padded, whole = (
        collator(ASSISTANT, tokenizer=tokenizer),
        collator(ASSISTANT, tokenizer=tokenizer, padding_free=True),
    )
    batch, one = padded(rows), whole(rows)
    mask = batch["attention_mask"].bool()
    assert set(one) == {"input_ids", "labels", "position_ids"}
    assert torch.equal(one["input_ids"], batch["input_ids"][mask][None])
    assert torch.equal(one["labels"], batch["labels"][mask][None])
    assert all(one["labels"][one["position_ids"] == 0] == -100)
    assert one["position_ids"][0].tolist() == [place for row in rows for place in range(len(row["input_ids"]))]


@pytest.mark.parametrize("templates", [(ASSISTANT,), (ASSISTANT, HUMAN)])
@pytest.mark.parametrize("as_ids", [False, True])
def test_the_plugin_trains_the_same_tokens(templates: tuple[str, ...], as_ids: bool) -> None:
    tokenizer = tiny_tokenizer()
    chosen = [ids_of(tokenizer, template) if as_ids else template for template in templates]
    names = ("response_template", "instruction_template")
    plugins, _ = select([Choice("completion_only", dict(zip(names, chosen, strict=False)))])
    assert plugins is not None
    rows = Dataset.from_dict({"text": [*DIALOGUES, "### Assistant: a### Human: b### Assistant: c"]})
    formatter = plugins.hook.make_formatter(
        columns=rows.features, tokenizer=tokenizer, processor=None, config=tiny_config()
    )
    made = encode(formatter(rows[:]), tokenizer, "bos_eos")
    for number in range(len(rows)):
        part = slice(*made.offsets_N1[number : number + 2])
        batch = collator(*chosen, tokenizer=tokenizer)([made.ids_S[part]])
        assert batch["labels"][0].tolist() == made.labels_S[part].tolist()


def test_an_empty_template_is_rejected() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        collator([])([[1, 2]])


def test_arrays_equal_the_tensors() -> None:
    made = collator(ASSISTANT, return_tensors="np")
    batch = made([ids_of(made.tokenizer, DIALOGUES[1])])
    assert isinstance(batch["labels"], np.ndarray)
    assert made.tokenizer.decode(batch["labels"][batch["labels"] != -100]) == " y"


@pytest.mark.parametrize("padding_free", [False, True])
def test_it_works_with_the_trainer_of_transformers(tmp_path: Path, padding_free: bool) -> None:
    tokenizer = tiny_tokenizer()
    rows = Dataset.from_list([dict(tokenizer(text)) for text in DIALOGUES])
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to="none", per_device_train_batch_size=2
    )
    made = collator(ASSISTANT, HUMAN, tokenizer=tokenizer, padding_free=padding_free)
    trainer = Trainer(model=tiny_model(), args=arguments, train_dataset=rows, data_collator=made)
    assert trainer.train().training_loss > 0
