"""Rows 1 to 6 of the table of faults: checkpoints that were interrupted, damaged or left incomplete."""

from __future__ import annotations

import json
import signal
from pathlib import Path


def losses(run: Path) -> dict[int, float]:
    """The loss of each step; of a step that was repeated, the later one."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}


def test_01_a_run_killed_between_saves_continues_with_the_same_losses(start, configure, tmp_path):
    train = {"gradient_accumulation_steps": 2, "num_train_epochs": 3, "max_steps": -1}
    config = configure(train=train, plugins={"neftune": {}})
    assert start("run", config, "-o", "whole").wait() == 0
    killed = start("run", config, "-o", "killed")
    killed.wait_until((tmp_path / "killed" / "checkpoint-4" / "trainer_state.json").exists)
    killed.send(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    resumed = start("run", config, "-o", "killed", "--resume")
    assert resumed.wait() == 0, resumed.output
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
