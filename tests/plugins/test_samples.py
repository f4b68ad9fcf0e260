"""Samples shows what was learned and changes nothing about how it was learned."""

import json

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from sftkit.api import complete
from sftkit.errors import ConfigError, DataError
from sftkit.testing import run_problems, tiny_config, tiny_model, tiny_tokenizer
from sftkit_plugins.samples import Samples
from sftkit_plugins.samples.callback import CompleteSamples, held_out, last_completion

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


def test_a_model_that_learned_its_rows_matches_them_exactly(tmp_path):
    trainer = train(tmp_path, Samples(), model=tiny_model("llama"), max_steps=60)

    rates = [(entry["step"], entry["eval_exact_match"]) for entry in trainer.state.log_history if len(entry) == 2]
    assert rates == [(0, 0.0), (60, 1.0)]


def test_samples_are_written_with_both_completions(tmp_path):
    train(tmp_path, Samples(shown=2), model=tiny_model("llama"), max_steps=60)

    rows = written(tmp_path)
    assert [(row["prompt"], row["reference"]) for row in rows] == list(QUESTIONS.items())[:2]
    assert [row["after"] for row in rows] == [row["reference"] for row in rows]
    assert all(row["before"] != row["reference"] for row in rows)
    assert [(row["exact_before"], row["exact_after"]) for row in rows] == [(False, True)] * 2


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


def test_the_reference_is_the_last_trained_run_of_tokens():
    ids = list(range(10, 18))
    labels = [IGNORE, 11, 12, IGNORE, IGNORE, 15, 16, IGNORE]

    assert last_completion({"input_ids": ids, "labels": labels}) == ([10, 11, 12, 13, 14], [15, 16])


def test_rows_without_prompt_or_trained_tokens_are_skipped():
    assert last_completion({"input_ids": [5, 6], "labels": [5, 6]}) is None
    assert last_completion({"input_ids": [5, 6], "labels": [IGNORE, IGNORE]}) is None


class Loader:
    def __init__(self, dataset):
        self.dataset = dataset


def test_the_number_of_completed_rows_is_limited():
    assert len(held_out(Loader(Dataset.from_list(HELD_OUT * 3)), rows=4)) == 4


def test_the_first_of_several_sets_is_used():
    sets = {"a": Dataset.from_list(HELD_OUT[:1]), "b": Dataset.from_list(HELD_OUT)}

    assert len(held_out(Loader(sets), rows=9)) == 1


def test_packed_evaluation_data_is_refused():
    packed = Dataset.from_list([{**row, "position_ids": list(range(len(row["labels"])))} for row in HELD_OUT])

    with pytest.raises(ConfigError, match="not packed"):
        held_out(Loader(packed), rows=9)


def test_held_out_rows_without_any_completion_are_refused():
    with pytest.raises(DataError, match="trained token"):
        held_out(Loader(Dataset.from_list([{"input_ids": [5], "labels": [IGNORE]}])), rows=9)


def test_a_resumed_run_keeps_the_completions_before_training(tmp_path):
    train(tmp_path, Samples(), model=tiny_model("llama"), max_steps=2, save_strategy="steps", save_steps=1)
    before = [row["before"] for row in written(tmp_path)]

    resumed = train(tmp_path, Samples(), max_steps=3, resume=str(tmp_path / "checkpoint-1"), model=tiny_model("llama"))

    assert [row["before"] for row in written(tmp_path)] == before
    assert [e["step"] for e in resumed.state.log_history if "eval_exact_match" in e] == [0, 3]


def test_only_one_process_writes(tmp_path):
    class State:
        is_world_process_zero = False

    CompleteSamples(8, 5, 4)._write(
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True), State(), TOKENIZER, "before", []
    )

    assert not (tmp_path / "samples.jsonl").exists()


def test_a_run_without_held_out_rows_is_refused_before_anything_is_read():
    assert [problem.where for problem in run_problems(Samples())] == ["plugin samples"]
    assert not run_problems(Samples(), data={"eval": 0.1})
