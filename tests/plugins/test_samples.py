"""Samples shows what was learned and changes nothing about how it was learned."""

import json

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerState, TrainingArguments

from sftkit import Pipeline
from sftkit.api import complete
from sftkit.testing import run_problems, tiny_config, tiny_model, tiny_tokenizer
from sftkit_plugins.samples import Samples
from sftkit_plugins.samples.callback import CompleteSamples, held_out, show

IGNORE = -100
TOKENIZER = tiny_tokenizer()
QUESTIONS = {"What is the capital?": "Paris", "Hello!": "How can I help you", "What is a quick fox?": "brown"}


def encoded(prompt, reply):
    front = TOKENIZER(prompt)["input_ids"]
    back = [*TOKENIZER(reply, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
    return {"input_ids": front + back, "labels": [IGNORE] * len(front) + back}


HELD_OUT = [encoded(prompt, reply) for prompt, reply in QUESTIONS.items()]


def collate(examples):
    width = max(len(example["input_ids"]) for example in examples)
    fills = {"input_ids": TOKENIZER.pad_token_id, "labels": IGNORE}
    padded = {
        name: torch.tensor([example[name] + [fill] * (width - len(example[name])) for example in examples])
        for name, fill in fills.items()
    }
    return padded | {"attention_mask": (padded["input_ids"] != TOKENIZER.pad_token_id).long()}


def train(directory, plugin=None, model=None, eval_set=None, resume=None, **options):
    """A short run of the bare Trainer, with the plugin's callbacks; returns the trainer."""
    model = model or tiny_model("llama", attention_dropout=0.3)
    arguments = TrainingArguments(
        output_dir=str(directory), report_to=[], use_cpu=True, seed=0, learning_rate=1e-2, lr_scheduler_type="constant",
        disable_tqdm=True, **{"max_steps": 4, "save_strategy": "no", **options},
    )  # fmt: skip
    callbacks = plugin.trainer_callbacks(tiny_config(data={"eval": 0.5})) if plugin else []
    eval_set = Dataset.from_list(HELD_OUT) if eval_set is None else eval_set
    trainer = Trainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(HELD_OUT), eval_dataset=eval_set,
        data_collator=collate, processing_class=TOKENIZER, callbacks=callbacks,
    )  # fmt: skip
    trainer.callback_handler.eval_dataloader = trainer.get_eval_dataloader()
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def written(directory):
    return [json.loads(line) for line in (directory / "samples.jsonl").read_text("utf-8").splitlines()]


def test_samples_are_written_with_the_completions_of_each_evaluation(tmp_path):
    options = {"max_steps": 60, "eval_strategy": "steps", "eval_steps": 30}
    trainer = train(tmp_path, Samples(rows=2), model=tiny_model("llama"), **options)

    rows = written(tmp_path)
    assert [(row["prompt"], row["reference"]) for row in rows] == list(QUESTIONS.items())[:2]
    for row in rows:
        assert [made["step"] for made in row["completions"]] == [0, 30, 60]
        assert row["completions"][0]["text"] != row["completions"][-1]["text"] == row["reference"]
        assert [made["exact"] for made in row["completions"]][::2] == [False, True]
    assert not [entry for entry in trainer.state.log_history if "eval_exact_match" in entry]


def test_the_last_completion_is_that_of_the_best_model(tmp_path):
    options = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    worst = {"load_best_model_at_end": True, "greater_is_better": True, "metric_for_best_model": "loss"}
    train(tmp_path, Samples(rows=1), model=tiny_model("llama"), **options, **worst)

    (row,) = written(tmp_path)
    assert [made["step"] for made in row["completions"]] == [0, 1, 2, 3, 1]
    assert row["completions"][-1]["text"] == row["completions"][1]["text"]


def test_samples_are_shown_at_the_end(capsys):
    made = [{"step": 0, "text": "Rome", "exact": False}, {"step": 9, "text": "Paris", "exact": True}]
    show([{"prompt": "What is it?", "reference": "Paris", "completions": made}])

    shown = capsys.readouterr().out
    assert all(text in shown for text in ("What is it?", "Rome", "Paris"))


def test_training_is_bitwise_the_same_with_and_without_samples(tmp_path):
    without, beside = train(tmp_path / "a").model, train(tmp_path / "b", Samples()).model

    for one, other in zip(without.parameters(), beside.parameters(), strict=True):
        assert torch.equal(one, other)


def test_completing_changes_no_mode_gradient_or_random_state():
    model = tiny_model("llama").train()
    model.lm_head.eval()
    model(input_ids=torch.tensor([[3, 4]])).logits.sum().backward()
    grads, state = [p.grad.clone() for p in model.parameters()], torch.get_rng_state()
    modes = [module.training for module in model.modules()]

    complete(model, TOKENIZER, [[3, 4, 5]], 4)

    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), grads, strict=True))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_completion_does_not_depend_on_its_batch(architecture):
    model = tiny_model(architecture)
    prompts = [list(range(3, 3 + length)) for length in (9, 2, 30, 5)] * 10

    together = complete(model, TOKENIZER, prompts, 8)

    assert together[:4] == [complete(model, TOKENIZER, [prompt], 8)[0] for prompt in prompts[:4]]


def test_a_completion_is_greedy():
    model, ids = tiny_model("llama").eval(), [3, 40, 50, 60]
    for _ in range(6):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))

    assert complete(model, TOKENIZER, [ids[:4]], 6) == [TOKENIZER.decode(ids[4:], skip_special_tokens=True).strip()]


def test_a_completion_stops_at_the_models_last_position():
    model = tiny_model("gpt2", n_positions=16)

    texts = complete(model, TOKENIZER, [list(range(3, 17)), list(range(3, 19))], 64)

    assert texts == ["", ""]  # one batch: the longer prompt leaves no room
    assert complete(model, TOKENIZER, [list(range(3, 17))], 64) != [""]


class Loader:
    def __init__(self, dataset):
        self.dataset = dataset


def test_the_number_of_completed_rows_is_limited():
    assert len(held_out(Loader(Dataset.from_list(HELD_OUT * 3)), rows=4).prompts) == 4


def test_the_first_of_several_sets_is_used():
    sets = {"a": Dataset.from_list(HELD_OUT[:1]), "b": Dataset.from_list(HELD_OUT)}

    assert len(held_out(Loader(sets), rows=9).prompts) == 1


def test_a_resumed_run_keeps_the_completions_up_to_its_checkpoint(tmp_path):
    steps = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    train(tmp_path, Samples(), model=tiny_model("llama"), max_steps=2, **steps)
    before = [row["completions"][:2] for row in written(tmp_path)]

    resume = str(tmp_path / "checkpoint-1")
    train(tmp_path, Samples(), model=tiny_model("llama"), max_steps=3, resume=resume, **steps)

    rows = written(tmp_path)
    assert [row["completions"][:2] for row in rows] == before
    assert [made["step"] for made in rows[0]["completions"]] == [0, 1, 2, 3]


def test_only_one_process_writes(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state, callback = TrainerState(is_world_process_zero=False), CompleteSamples(8, 4)

    trainer = {"eval_dataloader": Loader(Dataset.from_list(HELD_OUT)), "model": tiny_model("llama")}
    callback.on_train_begin(arguments, state, None, processing_class=TOKENIZER, **trainer)

    assert not (tmp_path / "samples.jsonl").exists()


def test_held_out_rows_without_a_completion_are_a_wrong_verdict():
    texts = [{"text": "Rome is the capital of Italy."}] * 2
    inputs = {"model": tiny_model(), "tokenizer": TOKENIZER, "data": texts, "eval": texts}
    run = Pipeline(**inputs, plugins=["samples", "no:checks"], train={"use_cpu": True}).prepare()

    (verdict,) = run.verdicts()
    assert (verdict.status, verdict.name) == ("wrong", "samples")


def test_a_run_without_held_out_rows_is_refused_before_anything_is_read():
    assert [problem.where for problem in run_problems(Samples())] == ["plugin samples"]
    assert not run_problems(Samples(), data={"eval": 0.1})
