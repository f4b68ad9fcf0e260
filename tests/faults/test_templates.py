"""Rows 19 and 27 of the table of faults: new tokens, and what a chat template does to the messages."""

from __future__ import annotations

import json

import pytest
import torch

from sftkit import Pipeline, SftkitError
from sftkit.testing import CHATML, tiny_conversations, tiny_model, tiny_tokenizer

TALKS = [
    {
        "messages": [
            {"role": "user", "content": f"first {n}"},
            {"role": "assistant", "content": f"answer {n}"},
            {"role": "user", "content": f"second {n}"},
            {"role": "assistant", "content": f"reply {n}"},
        ]
    }
    for n in range(6)
]
EACH = "<|{{ m.role }}|>{{ m.content }}{{ eos_token }}"
PROMPT = "{% if add_generation_prompt %}<|assistant|>{% endif %}"


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_19_new_tokens_trained_with_lora_reload_to_equal_logits(tmp_path, tied):
    """From the final directory and from a checkpoint, with peft alone."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    tiny_model(tie_word_embeddings=tied).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    train = {"max_steps": 4, "learning_rate": 1e-2, "use_cpu": True, "save_strategy": "steps", "save_steps": 4}
    result = Pipeline(
        model=str(tmp_path / "model"),
        data=tiny_conversations(8),
        plugins=["chatml", "peft"],
        train={**train, "output_dir": str(tmp_path / "run")},
    ).run()
    tokenizer = AutoTokenizer.from_pretrained(result.directory)
    ids = tokenizer.apply_chat_template(tiny_conversations(1)[0]["messages"], return_tensors="pt", return_dict=True)
    ids = ids["input_ids"]
    assert len(tokenizer) > len(tiny_tokenizer())
    assert (ids >= len(tiny_tokenizer())).any()
    with torch.no_grad():
        trained = result.model.eval()(input_ids=ids).logits
        for directory in (result.directory, result.directory / "checkpoint-4"):
            reloaded = AutoPeftModelForCausalLM.from_pretrained(directory).eval()
            assert torch.equal(reloaded(input_ids=ids).logits, trained), directory


@pytest.fixture
def prepare(tmp_path):
    """Prepares rows with a chat template; called with them, returns the prepared run."""

    def make(template, rows=TALKS):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return Pipeline(
            model=tiny_model(),
            tokenizer=tiny_tokenizer(chat_template=template),
            data={"train": str(path), "cache": False, "max_length": 200},
            train={"output_dir": str(tmp_path / "run"), "max_steps": 2},
        ).prepare()

    return make


def wrong(prepared):
    return " ".join(f"{item.what} -> {item.fix}" for item in prepared.verdicts() if item.status == "wrong")


def test_27_a_template_that_doubles_bos_stops_the_run(prepare, start, configure, tmp_path):
    template = "{{ bos_token }}{{ bos_token }}" + CHATML
    assert "6 rows begin with two BOS tokens -> remove the BOS token" in wrong(prepare(template))
    tiny_model().save_pretrained(tmp_path / "doubled")
    tiny_tokenizer(chat_template=template).save_pretrained(tmp_path / "doubled")
    command = start("run", configure(rows=TALKS), "-o", "run", "-m", "doubled")
    assert command.wait() == 2
    assert "6 rows begin with two BOS tokens" in command.output


@pytest.mark.parametrize("begin", ["", "<s>", "<s><s>"])
def test_27_a_text_gets_one_bos_however_many_it_begins_with(prepare, begin):
    prepared = prepare(None, [{"text": f"{begin}hello {n}"} for n in range(4)])
    for row in prepared.data.train:
        assert list(row["input_ids"]).count(prepared.tokenizer.bos_token_id) == 1


REFUSED = {
    "reverses the messages": (
        "{% for m in messages | reverse %}" + EACH + "{% endfor %}" + PROMPT,
        "writes message 4 (role assistant) before message 3 (role user)",
    ),
    "reverses them, with markers": (
        "{% for m in messages | reverse %}" + EACH.replace("{{ m.content }}{{ eos_token }}", "{% generation %}"
        "{{ m.content }}{{ eos_token }}{% endgeneration %}") + "{% endfor %}" + PROMPT,
        "writes message 4 (role assistant) before message 3 (role user)",
    ),
    "writes answers first": (
        "{% for m in messages if m.role == 'assistant' %}" + EACH + "{% endfor %}"
        "{% for m in messages if m.role == 'user' %}" + EACH + "{% endfor %}" + PROMPT,
        "writes message 4 (role assistant) before message 1 (role user)",
    ),
    "drops earlier turns": (
        "{% for m in messages[-2:] %}" + EACH + "{% endfor %}" + PROMPT,
        "leaves out the content of message 1 (role user)",
    ),
    "shortens contents": (
        "{% for m in messages %}" + EACH.replace("m.content", "m.content[:4]") + "{% endfor %}" + PROMPT,
        "the template does not render it unchanged",
    ),
    "changes contents": (
        "{% for m in messages %}" + EACH.replace("m.content", "m.content | upper") + "{% endfor %}" + PROMPT,
        "the template does not render it unchanged",
    ),
    "prompts otherwise than it trains": (
        "{% for m in messages %}" + EACH + "{% endfor %}" + PROMPT.replace("assistant", "bot"),
        "the generation prompt '<|bot|>' is not before it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_27_a_template_that_does_not_keep_the_conversation_is_refused(prepare, case):
    template, message = REFUSED[case]
    with pytest.raises(SftkitError) as caught:
        prepare(template)
    (problem,) = caught.value.problems
    assert message in problem.what
    assert problem.where.endswith("rows.jsonl:1")
    assert problem.fix


def test_27_contents_that_a_template_strips_are_counted(prepare):
    template = "{% for m in messages %}" + EACH.replace("m.content", "m.content | trim") + "{% endfor %}" + PROMPT
    spaced = [{"messages": [message | {"content": f" {message['content']}\n"} for message in TALKS[0]["messages"]]}]
    counts = prepare(template, [*spaced, *TALKS[1:]]).data.counts.by_split["train"]
    assert counts["rows noted: spaces or line breaks around a content removed by the template"] == 1


def test_27_a_prompt_of_messages_that_is_no_prefix_is_refused(prepare):
    rows = [{"prompt": row["messages"][:1], "completion": row["messages"][1:2]} for row in TALKS]
    with pytest.raises(SftkitError, match=r"the generation prompt '<\|bot\|>' is not before it"):
        prepare(REFUSED["prompts otherwise than it trains"][0], rows)
    with pytest.raises(SftkitError, match=r"writes message 2 \(role assistant\) before message 1"):
        prepare(REFUSED["reverses the messages"][0], rows)
