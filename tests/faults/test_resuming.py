"""Rows 1 and 3 of the table of faults: killed and resumed runs are bitwise the same as undisturbed ones."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import yaml

from sftkit import Pipeline
from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit.training.trainer import TokenLossTrainer

PAD = tiny_tokenizer().pad_token_id
ROWS = [{"prompt": f"What is {n}?", "completion": f" {n} is {'one more ' * (n % 4)}"} for n in range(24)]


def losses(run: Path) -> dict[int, float]:
    """The loss of each step; of a step that was repeated, the later one."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}


@pytest.mark.parametrize("kills", [[5], pytest.param([5, 10, 15], marks=pytest.mark.slow)], ids=["once", "three times"])
def test_01_a_run_killed_between_saves_has_the_same_losses_and_weights(start, configure, tmp_path, kills):
    """With dropout, NEFTune, shuffling, packing and gradient accumulation."""
    model = tiny_model("gpt2", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    model.save_pretrained(tmp_path / "dropout")
    tiny_tokenizer().save_pretrained(tmp_path / "dropout")
    config = configure(
        train={"gradient_accumulation_steps": 2, "max_steps": kills[-1] + 4, "save_steps": 5},
        plugins={"neftune": {}, "packing": {}},
        model={"name": str(tmp_path / "dropout")},
    )
    assert start("run", config, "-o", "whole").wait() == 0
    for step in kills:
        killed = start("run", config, "-o", "killed", *(["--resume"] if step > 5 else []))
        killed.wait_until((tmp_path / "killed" / f"checkpoint-{step}" / "trainer_state.json").exists)
        killed.wait_until(lambda step=step: max(losses(tmp_path / "killed")) > step)
        killed.send(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
    resumed = start("run", config, "-o", "killed", "--resume")
    assert resumed.wait() == 0, resumed.output
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert weights[0] == weights[1]


SLOW = ("prepared", "workers", "packed", "packed stream", "rebalanced")
DATA = {
    "prepared": {},
    "grouped by length": {"train": {"train_sampling_strategy": "group_by_length"}},
    "rebalanced": {"train": {"train_sampling_strategy": "batch_rebalance"}},
    "packed": {"plugins": ["packing"]},
    "stream": {"data": {"streaming": True, "window": 8, "shuffle_buffer": 6}},
    "packed stream": {"data": {"streaming": True, "window": 8, "shuffle_buffer": 6}, "plugins": ["packing"]},
    "workers": {"train": {"dataloader_num_workers": 2}},
}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in DATA])
def test_03_a_run_resumed_in_a_later_epoch_trains_the_same_rows_in_the_same_order(tmp_path, monkeypatch, kind):
    trained: list[list[list[int]]] = []
    step = TokenLossTrainer.training_step

    def recorded(self, model, inputs, *arguments, **options):
        trained.append(inputs["input_ids"].tolist())
        return step(self, model, inputs, *arguments, **options)

    monkeypatch.setattr(TokenLossTrainer, "training_step", recorded)
    chosen = DATA[kind]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:11]), encoding="utf-8")
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    epoch = 2 if "packing" in chosen.get("plugins", []) else 6  # steps
    last = 4 * epoch - 1

    def run(output, steps, resume=False):
        train = {"per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 2 * epoch + 1}
        train |= {"use_cpu": True, "lr_scheduler_type": "constant", "max_steps": steps, **chosen.get("train", {})}
        data = {"train": str(path), "max_length": 64, **chosen.get("data", {})}
        config = {"model": {"name": str(tmp_path / "model")}, "data": data}
        config["train"] = {**train, "output_dir": str(tmp_path / output)}
        trained.clear()
        Pipeline(config=config, plugins=chosen.get("plugins", []), resume=resume).run()
        return list(trained)

    whole = run("whole", last)
    assert run("parts", 2 * epoch + 1) + run("parts", last, resume=True) == whole
    if kind == "prepared":
        first, second = (
            sorted([token for token in row if token != PAD] for batch in whole[at : at + epoch] for row in batch)
            for at in (0, epoch)
        )
        assert first == second
        assert whole[:epoch] != whole[epoch : 2 * epoch]  # each epoch has an order that only a resumed state knows


@pytest.mark.slow
def test_03_a_killed_run_on_a_mixture_continues_in_its_order(start, configure, tmp_path):
    config = configure(train={"max_steps": 30, "save_steps": 14})
    values = yaml.safe_load(config.read_text())
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": row["prompt"]}) + "\n" for row in ROWS), encoding="utf-8")
    values["data"] = {"mix": {values["data"]["train"]: 2, str(other): 1}, "mix_until": "all"}
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert start("run", config, "-o", "whole").wait() == 0
    killed = start("run", config, "-o", "killed")
    killed.wait_until((tmp_path / "killed" / "checkpoint-14" / "trainer_state.json").exists)
    killed.send(signal.SIGKILL)
    killed.wait()
    assert start("run", config, "-o", "killed", "--resume").wait() == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
