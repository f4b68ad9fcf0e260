"""``trl.extras.dataset_formatting`` of 2024: texts from known columns, by the chat template."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from datasets import List, Value

from sftkit_plugins.packing.stream import ConstantLengthDataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "FORMAT_MAPPING",
    "ConstantLengthDataset",
    "conversations_formatting_function",
    "get_formatting_func_from_dataset",
    "instructions_formatting_function",
]

#: The features of known formats: of the column of a conversation, and of all columns of instructions.
FORMAT_MAPPING: dict[str, Any] = {
    "chatml": List({"content": Value("string"), "role": Value("string")}),
    "instruction": {"completion": Value("string"), "prompt": Value("string")},
}


def conversations_formatting_function(
    tokenizer: PreTrainedTokenizerBase, messages_field: str, tools: list[Any] | None = None
) -> Callable[[Any], Any]:
    """A function that renders the conversation of a row, or those of a batch as columns, with the chat template.

    Args:
        tokenizer: has the chat template.
        messages_field: the column of conversations, ``messages`` or ``conversations``.
        tools: passed to the template.
    """

    def render(rows: Any) -> Any:
        messages = rows[messages_field]
        if messages and isinstance(messages[0], list):
            return [tokenizer.apply_chat_template(each, tokenize=False, tools=tools) for each in messages]
        return tokenizer.apply_chat_template(messages, tokenize=False, tools=tools)

    return render


def instructions_formatting_function(tokenizer: PreTrainedTokenizerBase) -> Callable[[Any], Any]:
    """A function that renders ``prompt`` and ``completion`` of a row or a batch as a turn each."""

    def turns(prompt: str, completion: str) -> Any:
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        return tokenizer.apply_chat_template(messages, tokenize=False)

    def render(rows: Any) -> Any:
        if isinstance(rows["prompt"], list):
            return [turns(*pair) for pair in zip(rows["prompt"], rows["completion"], strict=True)]
        return turns(rows["prompt"], rows["completion"])

    return render


def get_formatting_func_from_dataset(
    dataset: Any, tokenizer: PreTrainedTokenizerBase, tools: list[Any] | None = None
) -> Callable[[Any], Any] | None:
    """A function that renders one row, or a batch as columns, with the chat template; None for other columns.

    Args:
        dataset: with a column ``messages`` or ``conversations`` of ``{role, content}``, or with exactly the text
            columns ``prompt`` and ``completion``.
        tokenizer: has the chat template.
        tools: passed to the template with conversations.
    """
    features = getattr(dataset, "features", None) or {}
    for column in ("messages", "conversations"):
        if column in features:
            known = _of_strings(features[column]) == FORMAT_MAPPING["chatml"]
            return conversations_formatting_function(tokenizer, column, tools) if known else None
    known = {name: _of_strings(feature) for name, feature in features.items()} == FORMAT_MAPPING["instruction"]
    return instructions_formatting_function(tokenizer) if known else None


def _of_strings(feature: Any) -> Any:
    """A feature with every text as ``string``, whatever the size of its offsets, and lists as `datasets.List`."""
    if isinstance(feature, list | List):
        return List(_of_strings(feature[0] if isinstance(feature, list) else feature.feature))
    if isinstance(feature, dict):
        return {name: _of_strings(each) for name, each in feature.items()}
    return Value("string") if getattr(feature, "dtype", None) == "large_string" else feature
