"""Token ids and labels compared with those of TRL's SFTTrainer, row by row, with the known differences.

Both start from the same rows and the same tokenizer. TRL's preparation runs without a model. The label of the first
token of a row is not compared: no loss uses it, sftkit masks it and TRL does not.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from datasets import Dataset, disable_progress_bars
from transformers import AutoTokenizer

from sftkit import Pipeline
from sftkit.testing import CHATML, tiny_model

trl = pytest.importorskip("trl")
MASKED = -100
MARKS_NEWLINE = CHATML.replace("{{ eos_token }}{% endgeneration %}", "{{ eos_token }}\n{% endgeneration %}")


@pytest.fixture(scope="module")
def llama(real_data):
    tokenizer = AutoTokenizer.from_pretrained(real_data / "llama2_tokenizer")
    tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


@pytest.fixture(scope="module")
def pairs(real_data):
    """Questions and answers of Code Alpaca; none is empty."""
    rows = json.loads((real_data / "code_alpaca_2k.json").read_text(encoding="utf-8"))[:400]
    return [(f"{row['instruction']}\n{row['input']}\n", row["output"]) for row in rows if row["output"].strip()]


def ours(rows, tokenizer, max_length=512, **data):
    config = {"data": {"max_length": max_length, "cache": False, **data}, "train": {"output_dir": "unused"}}
    run = Pipeline(model=tiny_model(), data=Dataset.from_list(rows), tokenizer=tokenizer, config=config)
    return [[row[name].tolist() for name in ("input_ids", "labels")] for row in run.prepare().data.train]


def theirs(rows, tokenizer, max_length=512, **options):
    disable_progress_bars()
    dataset = Dataset.from_list(rows)
    args = trl.SFTConfig(output_dir="unused", max_length=max_length, use_cpu=True, bf16=False, **options)
    own = {"completion_only_loss": "prompt" in dataset.column_names, "chat_template": tokenizer.chat_template}
    trainer = SimpleNamespace(_tokenizer=tokenizer, _is_vlm=False, **own)
    prepared = trl.SFTTrainer._prepare_dataset(trainer, dataset, tokenizer, args, False, None, "train")
    return [[row["input_ids"], row["labels"]] for row in prepared]


def differing(first, second):
    """The rows that differ in more than the first label."""
    assert len(first) == len(second)
    return [
        at
        for at, ((ids, labels), (other_ids, other_labels)) in enumerate(zip(first, second, strict=True))
        if ids != other_ids or labels[1:] != other_labels[1:]
    ]


@pytest.mark.parametrize("max_length", [64, 512])
def test_text_gives_the_same_examples(pairs, llama, max_length):
    rows = [{"text": question + answer} for question, answer in pairs]
    assert differing(ours(rows, llama, max_length), theirs(rows, llama, max_length)) == []


@pytest.mark.parametrize("max_length", [64, 512])
def test_prompt_and_completion_give_the_same_examples(pairs, llama, max_length):
    rows = [{"prompt": question, "completion": answer} for question, answer in pairs]
    found = ours(rows, llama, max_length)
    assert differing(found, theirs(rows, llama, max_length)) == []
    assert all(any(label != MASKED for label in labels) for _, labels in found)


@pytest.mark.parametrize("max_length", [64, 512])
def test_conversations_give_the_same_examples(pairs, llama, max_length):
    llama.chat_template = CHATML
    rows = [
        {
            "messages": [
                {"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, turns, strict=True)
            ]
        }
        for turns in ((*first, *second) for first, second in zip(pairs[::2], pairs[1::2], strict=False))
    ]
    assert differing(ours(rows, llama, max_length), theirs(rows, llama, max_length, assistant_only_loss=True)) == []


def test_completions_of_messages_give_the_same_examples(pairs, llama):
    llama.chat_template = CHATML
    rows = [
        {"prompt": [{"role": "user", "content": question}], "completion": [{"role": "assistant", "content": answer}]}
        for question, answer in pairs[:100]
    ]
    expected = theirs(rows, llama, 2048)
    for _, labels in expected:  # CHATML ends a turn with a line break, which TRL trains as part of the completion
        assert labels[-1] != MASKED
        labels[-1] = MASKED
    assert differing(ours(rows, llama, 2048), expected) == []


# Known differences


def test_trl_adds_a_second_bos_to_text_with_bos(llama):
    rows = [{"text": "<s>Hello there"}]
    ((their_ids, _),), ((our_ids, _),) = theirs(rows, llama), ours(rows, llama)
    assert their_ids[:2] == [llama.bos_token_id] * 2
    assert our_ids == their_ids[1:]


def test_trl_trains_prompt_tokens_that_merge_differently_with_the_completion():
    """TRL trains from the first token that differs from the prompt's own tokens; here it is inside the prompt."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: at for at, token in enumerate(["</s>", "a", "b", "c", "d", "bc", "ab", "cd"])}
    merges = [("c", "d"), ("b", "c"), ("a", "b")]
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")
    rows = [{"prompt": "abc", "completion": "d"}]  # tokens of the prompt alone: a bc; with the completion: ab cd
    ((their_ids, their_labels),), ((our_ids, our_labels),) = theirs(rows, tokenizer), ours(rows, tokenizer)
    assert our_ids == their_ids == [vocab["ab"], vocab["cd"], 0]
    assert their_labels == [vocab["ab"], vocab["cd"], 0]
    assert our_labels == [MASKED, vocab["cd"], 0]


def test_trl_trains_whitespace_after_the_closing_token(llama):
    llama.chat_template = MARKS_NEWLINE.replace("{% endif %}{{ '\\n' }}{% endfor %}", "\n{% endif %}{% endfor %}")
    assert "{{ eos_token }}\n{% endgeneration %}" in llama.chat_template
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}]
    ((their_ids, their_labels),) = theirs(rows, llama, assistant_only_loss=True)
    ((our_ids, our_labels),) = ours(rows, llama)
    assert our_ids == their_ids
    trained = [llama.decode([i for i in labels if i != MASKED]) for labels in (their_labels, our_labels)]
    assert trained[0].rstrip("\n") == trained[1]
    assert trained[0] != trained[1]


def test_trl_keeps_empty_rows(llama):
    rows = [{"text": ""}, {"text": "Hello"}]
    assert [len(found) for found in (theirs(rows, llama), ours(rows, llama))] == [2, 1]


def test_trl_rejects_templates_without_markers(llama):
    llama.chat_template = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}]
    with pytest.raises(RuntimeError, match="no assistant tokens"):
        theirs(rows, llama, assistant_only_loss=True)
    ((_, labels),) = ours(rows, llama)
    assert llama.decode([label for label in labels if label != MASKED]).startswith("Ho</s>")
