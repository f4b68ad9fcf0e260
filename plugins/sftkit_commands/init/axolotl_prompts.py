"""Prompts that Axolotl builds of format strings, written as a formatting function."""

from __future__ import annotations

from typing import Any

#: The defaults of a format that is defined in place.
USER_FIELDS: dict[str, Any] = {
    "system_prompt": "",
    "field_system": "system",
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
    "format": "{instruction} {input} ",
    "no_input_format": "{instruction} ",
    "system_format": "{system}",
}
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
_WITHOUT = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_STYLES = {
    "chat": ("SYSTEM: {system}\n", "USER: {instruction}\n{input}\nASSISTANT:", "USER: {instruction}\nASSISTANT:"),
    "chatml": (
        "<|im_start|>system\n{system}<|im_end|>\n",
        "<|im_start|>user\n{instruction}\n{input}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
    ),
}


def known_prompt(kind: str) -> dict[str, Any] | None:
    """The format strings of a type that has a name, such as ``alpaca:chat``; None for others."""
    style = {"alpaca:chat": "chat", "alpaca:chatml": "chatml", "alpaca_chat.load": "chat"}.get(kind)
    if style is None:
        return None
    system, turn, without = _STYLES[style]
    shared = {"system_format": system, "format": turn, "no_input_format": without}
    return USER_FIELDS | shared | {"system_prompt": _WITHOUT, "system_with_input": _WITH_INPUT}


def formatting_module(prompt: dict[str, Any], train_prompt: bool) -> str:
    """The source of a module whose function makes the prompt, and marks what is trained.

    Args:
        prompt: format strings and names of columns, as in `USER_FIELDS`.
        train_prompt: whether the prompt is trained too.
    """
    with_input = prompt.get("system_with_input", prompt["system_prompt"])
    return f'''"""The prompt of sft.yaml: text, and whether it is trained. EOS is added after it."""

SYSTEM = {prompt["system_prompt"]!r}
SYSTEM_WITH_INPUT = {with_input!r}
SYSTEM_FORMAT = {prompt["system_format"]!r}
FORMAT = {prompt["format"]!r}
FORMAT_WITHOUT_INPUT = {prompt["no_input_format"]!r}


def format_row(row):
    """The prompt and the answer of one row."""
    instruction = row[{prompt["field_instruction"]!r}]
    given = row.get({prompt["field_input"]!r}) or ""
    system = row.get({prompt["field_system"]!r}) or (SYSTEM_WITH_INPUT if given else SYSTEM)
    prompt = SYSTEM_FORMAT.format(system=system) if system else ""
    if given:
        prompt += FORMAT.format(instruction=instruction, input=given)
    else:
        prompt += FORMAT_WITHOUT_INPUT.format(instruction=instruction)
    return [(prompt, {train_prompt}), (row[{prompt["field_output"]!r}] or "", True)]
'''
