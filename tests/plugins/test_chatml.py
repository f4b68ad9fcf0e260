"""Chat templates and their special tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sftkit.errors import ConfigError
from sftkit.testing import plugin_set, run_problems, tiny_model, tiny_tokenizer
from sftkit_plugins.chatml import TEMPLATES, ChatML

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hello! "},
    {"role": "assistant", "content": "Hi."},
]
RENDERED = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hello! <|im_end|>\n"
    "<|im_start|>assistant\nHi.<|im_end|>\n",
    "zephyr": "<|system|>\nBe brief.</s>\n<|user|>\n Hello! </s>\n<|assistant|>\nHi.</s>\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n Hello! <|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHi.<|eot_id|>",
    "plain": "<s>System: Be brief.\nUser:  Hello! \nAssistant: Hi.</s>\n",
}
TRAINED = {"chatml": "Hi.<|im_end|>", "zephyr": "Hi.</s>", "llama3": "Hi.<|eot_id|>", "plain": " Hi.</s>"}


def prepared(template: str = "chatml", tokenizer: Any = None, **options: Any) -> Any:
    tokenizer = tokenizer if tokenizer is not None else tiny_tokenizer()
    ChatML(template=template, **options).add_tokens(tokenizer=tokenizer)
    return tokenizer


def problems(template: str) -> list[Any]:
    return run_problems(ChatML(template=template))


@pytest.mark.parametrize("template", TEMPLATES)
def test_built_in_templates_render_messages_as_documented(template: str) -> None:
    assert prepared(template).apply_chat_template(MESSAGES, tokenize=False) == RENDERED[template]


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_answer_and_its_closing_token_are_marked_as_generated(template: str) -> None:
    tokenizer = prepared(template)
    encoded = tokenizer.apply_chat_template(MESSAGES, return_dict=True, return_assistant_tokens_mask=True)
    marked = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(marked) == TRAINED[template]
    assert marked[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_generation_prompt_is_the_text_before_the_answer(template: str) -> None:
    tokenizer = prepared(template)
    prompt = tokenizer.apply_chat_template(MESSAGES[:2], tokenize=False, add_generation_prompt=True)
    assert prompt + TRAINED[template] == RENDERED[template].removesuffix("\n")


@pytest.mark.parametrize("template", TEMPLATES)
def test_no_system_message_is_added(template: str) -> None:
    assert "system" not in prepared(template).apply_chat_template(MESSAGES[1:], tokenize=False).lower()


@pytest.mark.parametrize("message", [{"content": None}, {"content": "x", "tool_calls": [{"id": "1"}]}])
@pytest.mark.parametrize("template", TEMPLATES)
def test_messages_without_text_or_with_tool_calls_are_refused(template: str, message: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=f"the {template} template takes messages whose content is text"):
        prepared(template).apply_chat_template([{"role": "assistant", **message}], tokenize=False)


def test_only_missing_tokens_are_added() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert prepared(tokenizer=tokenizer).convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"]) == [end, end + 1]
    before = len(tokenizer)
    assert len(prepared(tokenizer=tokenizer)) == before


def test_added_tokens_are_special_tokens() -> None:
    tokenizer = prepared("llama3", tokens=["<|tool|>"])
    ids = tokenizer("<|eot_id|><|tool|>", add_special_tokens=False)["input_ids"]
    assert len(ids) == 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == ""


def test_a_pad_token_other_than_eos_is_kept() -> None:
    assert prepared().pad_token == "<pad>"


def test_without_a_pad_token_the_old_eos_is_used() -> None:
    tokenizer = prepared(tokenizer=tiny_tokenizer(pad=False))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "</s>")


def test_a_pad_token_that_equals_eos_is_replaced_by_unk() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token, tokenizer.unk_token = "</s>", "<pad>"
    assert prepared("zephyr", tokenizer).pad_token == "<pad>"


def test_a_new_pad_token_is_added_as_a_last_resort() -> None:
    tokenizer = prepared("zephyr", tiny_tokenizer(pad=False))
    assert tokenizer.pad_token == "<|pad|>"
    assert tokenizer.pad_token_id == 320


def test_a_template_that_ends_with_eos_needs_one() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match=r"the tokenizer has no EOS token -> use the template chatml"):
        prepared("zephyr", tokenizer)


def test_the_closing_token_of_a_template_file_becomes_eos(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }} <end>\n{% endfor %}", encoding="utf-8")
    tokenizer = prepared(str(path), tokens=["<end>"])
    assert tokenizer.eos_token == "<end>"
    assert tokenizer.apply_chat_template(MESSAGES[2:], tokenize=False) == "[assistant]Hi. <end>\n"


def test_a_syntax_error_in_a_template_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.jinja"
    path.write_text("fine\n{% for %}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.jinja, line 2"):
        prepared(str(path))


def test_an_unknown_template_is_reported_with_the_nearest_name() -> None:
    (problem,) = problems("zefyr")
    assert problem.fix == "did you mean 'zephyr'?"


def test_a_missing_template_file_is_reported() -> None:
    (problem,) = problems("nowhere/chat.jinja")
    assert "nowhere/chat.jinja" in problem.what


def test_a_built_in_template_is_accepted() -> None:
    assert problems("llama3") == []


def test_embedding_rows_are_rounded_up_to_the_multiple() -> None:
    model, tokenizer = tiny_model(), prepared()
    hook = plugin_set(ChatML(pad_to_multiple_of=64)).hook
    assert hook.resize_embeddings(model=model, tokenizer=tokenizer, new_token_ids=[320, 321]) is True
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == 384


@pytest.mark.parametrize(("name", "pad"), [("gpt2_tokenizer", "<|endoftext|>"), ("llama2_tokenizer", "</s>")])
def test_real_tokenizers_get_two_tokens_and_pad_with_the_old_eos(name: str, pad: str) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"needs {DATA / name}")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(DATA / name))
    before = len(tokenizer)
    prepared(tokenizer=tokenizer)
    assert (len(tokenizer) - before, tokenizer.pad_token, tokenizer.eos_token) == (2, pad, "<|im_end|>")
