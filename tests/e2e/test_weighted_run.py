"""A run whose tokens have weights has the loss and step of an independent loop, and at 1 is bitwise the plain run."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset

from sftkit import Pipeline
from sftkit.testing import CHATML, tiny_model, tiny_tokenizer

RATE = 0.1
ONCE = {"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 1}
ONCE |= {"learning_rate": RATE, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0, "use_cpu": True}
#: Of three turns a conversation; None says nothing.
WEIGHTS = [(0.5, None, 2.0), (None, 0.0, 0.25), (1.0, 3.0, None), (None, None, None)]


def conversations(weights=WEIGHTS):
    rows = []
    for number, three in enumerate(weights):
        messages = []
        for turn, weight in enumerate(three):
            messages.append({"role": "user", "content": f"What is {number} plus {turn}?"})
            answer = {"role": "assistant", "content": f"It is {number + turn}, " * (1 + turn) + "I think."}
            messages.append(answer if weight is None else {**answer, "weight": weight})
        rows.append({"messages": messages})
    return rows


def run(tmp_path, rows, *plugins, name="run", eval=None, **train):
    config = {"data": {"max_length": 1024, "cache": False}, "train": {"output_dir": str(tmp_path / name), "seed": 0}}
    config["train"] |= {**ONCE, **train}
    return Pipeline(
        model=tiny_model(max_position_embeddings=2048),
        tokenizer=tiny_tokenizer(chat_template=CHATML),
        data=Dataset.from_list(rows),
        eval=eval and Dataset.from_list(eval),
        config=config,
        plugins=plugins,
    ).run()


def weights_of(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def reference(rows):
    """Conversation by conversation: the weighted mean of the tokens' losses, and the weights after a step of SGD."""
    model, tokenizer = tiny_model(max_position_embeddings=2048), tiny_tokenizer(chat_template=CHATML)
    total, divisor = torch.zeros(()), 0.0
    for row in rows:
        ids, counts = [], []
        for message in row["messages"]:
            assistant = message["role"] == "assistant"
            # As text the whole is tokenized at once; here no token lies over the border of a turn.
            end = tokenizer.eos_token if assistant else "<|im_end|>"
            head, body = f"<|im_start|>{message['role']}\n", message["content"] + end
            weight = message.get("weight")
            weight = (1.0 if weight is None else weight) if assistant else 0.0
            for text, count in ((head, 0.0), (body, weight), ("\n", 0.0)):
                tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
                ids += tokens
                counts += [count] * len(tokens)
        whole = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        assert ids == tokenizer(whole, add_special_tokens=False)["input_ids"]
        logp = torch.log_softmax(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float(), -1)
        for at in range(1, len(ids)):
            if counts[at]:
                total = total - counts[at] * logp[at - 1, ids[at]]
                divisor += counts[at]
    loss = total / divisor
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= RATE * parameter.grad
    return loss.item(), weights_of(model)


@pytest.mark.parametrize("plugins", [(), ("packing",), ("flash_attn",), ("flash_attn", "packing")])
def test_loss_and_step_equal_an_independent_loop(tmp_path, plugins):
    done = run(tmp_path, conversations(), *plugins)
    loss, expected = reference(conversations())
    assert done.metrics["train_loss"] == pytest.approx(loss, rel=1e-5)
    for name, value in weights_of(done.model).items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_weights_make_another_step_than_none(tmp_path):
    weighted = weights_of(run(tmp_path, conversations(), name="weighted").model)
    plain = weights_of(run(tmp_path, conversations([(None,) * 3] * 4), name="plain").model)
    assert max((weighted[name] - plain[name]).abs().max() for name in plain) > 1e-4


@pytest.mark.slow
def test_a_weight_of_one_everywhere_is_bitwise_the_run_without(tmp_path):
    rows = [{"prompt": f"question {at} ", "completion": f"answer {at}"} for at in range(8)]
    found = []
    for name, more in (("plain", {}), ("ones", {"weight": 1.0})):
        done = run(tmp_path, [{**row, **more} for row in rows], name=name, max_steps=2)
        found.append((done.metrics["train_loss"], weights_of(done.model)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][name], value) for name, value in found[1][1].items())


def test_a_weight_of_zero_is_bitwise_the_run_that_does_not_train_the_turn(tmp_path):
    plain = conversations([(None,) * 3] * 4)
    found = []
    for name, key in (("zero", {"weight": 0}), ("off", {"train": False})):
        rows = [
            {"messages": [*row["messages"][:3], {**row["messages"][3], **key}, *row["messages"][4:]]} for row in plain
        ]
        done = run(tmp_path, rows, name=name)
        found.append((done.metrics["train_loss"], weights_of(done.model)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][name], value) for name, value in found[1][1].items())


@pytest.mark.slow
def test_equal_weights_cancel_out_of_the_mean(tmp_path):
    one = run(tmp_path, conversations([(1.0,) * 3] * 4), name="one")
    half = run(tmp_path, conversations([(0.5,) * 3] * 4), name="half")
    for name, value in weights_of(half.model).items():
        torch.testing.assert_close(value, one.model.state_dict()[name], atol=1e-7, rtol=1e-5)


def test_the_evaluation_loss_is_weighted_too(tmp_path):
    train = conversations([(None,) * 3] * 4)
    done = run(tmp_path, train, "no:checks", eval=conversations(), learning_rate=1e-30)  # the rows overlap
    loss, _ = reference(conversations())
    assert done.metrics["eval_loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_a_stream_may_have_weights_in_some_batches_only(tmp_path, monkeypatch):
    monkeypatch.setattr("sftkit.data.feed.BATCH", 1)  # rows encoded together have weights if one of them has
    found = []
    for name, weights in (("plain", (None, None)), ("weighted", (None, 0.5))):
        lines = []
        for number in range(32):
            weight = weights[number % 5 == 0]
            row = {"prompt": "question ", "completion": "the same answer"}
            lines.append(json.dumps(row if weight is None else {**row, "weight": weight}))
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(lines))
        config = {
            "data": {"train": str(path), "streaming": True, "window": 2, "max_length": 64},
            "train": {**ONCE, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 3}
            | {"learning_rate": 1e-30, "output_dir": str(tmp_path / name)},
        }
        run = Pipeline(model=tiny_model(), tokenizer=tiny_tokenizer(), config=config)
        found.append(run.run().metrics["train_loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-6)  # the mean of equal losses, whatever they weigh
