"""Shared by the tests of `sftkit_trl`: a tiny model with a name, rows of questions and answers, a quick trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit_trl import SFTConfig, SFTTrainer, TrainingArguments

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
ANIMALS = ["llama", "cat", "dog", "owl", "bee", "fish", "fox"]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    """Adds ``<s>`` before each text, and has a chat template."""
    return tiny_tokenizer(chat_template=TEMPLATE)


@pytest.fixture(scope="session")
def named(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a model with its tokenizer: a directory."""
    path = tmp_path_factory.mktemp("named")
    tiny_model().save_pretrained(path)
    tiny_tokenizer(chat_template=TEMPLATE).save_pretrained(path)
    return str(path)


@pytest.fixture
def rows() -> Dataset:
    """Seven rows of ``question``, ``answer``, and both as ``text``."""
    made = [{"question": f"Can a {name} fly?", "answer": f"Ask the {name}."} for name in ANIMALS]
    return Dataset.from_list([{**row, "text": f"### Q: {row['question']}### A: {row['answer']}"} for row in made])


@pytest.fixture
def conversations() -> Dataset:
    """Twelve rows of ``messages``: a system message, a question and an answer."""
    roles = ("system", "user", "assistant")
    said = [("Be kind.", f"What is {number} plus one?", f"It is {number + 1}.") for number in range(12)]
    messages = [[{"role": r, "content": c} for r, c in zip(roles, one, strict=True)] for one in said]
    return Dataset.from_dict({"messages": messages})


@pytest.fixture
def config(tmp_path: Any) -> Callable[..., SFTConfig]:
    """Makes an `SFTConfig` of two steps of two rows."""

    def made(**options: Any) -> SFTConfig:
        short = {"max_steps": 2, "per_device_train_batch_size": 2, "max_seq_length": 32, "logging_steps": 1}
        place = {"output_dir": str(tmp_path / "out"), "report_to": "none", "use_cpu": True, "save_strategy": "no"}
        return SFTConfig(**{**short, **place, **options})

    return made


@pytest.fixture
def make(config: Any, rows: Dataset, tokenizer: Any) -> Callable[..., SFTTrainer]:
    """Makes an `SFTTrainer` of a tiny model on the column ``text``; ``args`` are fields of its `SFTConfig`."""

    def made(model: Any = None, *, args: dict[str, Any] | None = None, **arguments: Any) -> SFTTrainer:
        options = args or {}
        if "train_dataset" not in arguments and "formatting_func" not in arguments:
            options = {"dataset_text_field": "text", **options}
        arguments = {"train_dataset": rows, "tokenizer": tokenizer, **arguments}
        return SFTTrainer(tiny_model() if model is None else model, config(**options), **arguments)

    return made


@pytest.fixture
def question() -> Callable[[Any], str]:
    """A formatting function for one row."""
    return lambda row: f"Q {row['question']} A {row['answer']}"


@pytest.fixture
def questions() -> Callable[[Any], list[str]]:
    """A formatting function for a batch."""
    return lambda rows: [f"Q {q} A {a}" for q, a in zip(rows["question"], rows["answer"], strict=True)]


@pytest.fixture
def ids() -> Callable[[Any], list[list[int]]]:
    """Returns the token ids of a data set as lists."""
    return lambda dataset: [[int(token) for token in row["input_ids"]] for row in dataset]


@pytest.fixture
def weights() -> Callable[[Any], dict[str, torch.Tensor]]:
    """Copies the weights of a model."""
    return lambda model: {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def same() -> Callable[..., bool]:
    """Whether two models have equal weights."""
    return lambda one, other: one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def arguments(tmp_path: Any) -> Callable[..., TrainingArguments]:
    """Makes `TrainingArguments` of 2024, of two steps of two rows."""

    def made(**options: Any) -> TrainingArguments:
        short = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no"}
        place = {"output_dir": str(tmp_path / "out"), "report_to": "none", "use_cpu": True}
        return TrainingArguments(**{**short, **place, **options})

    return made


@pytest.fixture
def losses() -> Callable[[Any], list[float]]:
    """The losses that a trainer logged."""
    return lambda trainer: [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
