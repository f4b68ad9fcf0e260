"""Row 20 of the table of faults: rows that several processes cannot share equally."""

from __future__ import annotations

import json

import pytest

from sftkit.testing.processes import start_group

DATA = {
    "prepared": {},
    "packed": {"plugins": {"packing": {}}},
    "stream": {"streaming": True, "train": {"max_steps": 5, "num_train_epochs": 1}},
    "accumulated": {"train": {"gradient_accumulation_steps": 2}},
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in ("prepared", "stream"))) for kind in DATA]
)
def test_20_processes_with_unequal_shares_take_equal_steps_and_end(processes, configure, tmp_path, kind):
    """Seven rows, and five to evaluate on, for two processes with batches of two."""
    rows = [{"prompt": f"What is {n}?", "completion": f" {n} is {'one more ' * (n % 4)}"} for n in range(7)]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row | {"prompt": "?"}) + "\n" for row in rows[:5]))
    chosen = DATA[kind]
    train = {"max_steps": -1, "num_train_epochs": 3, "save_steps": 3, "ddp_backend": "gloo", **chosen.get("train", {})}
    config = configure(rows=rows, train={**train, "eval_strategy": "epoch"}, plugins=chosen.get("plugins", {}))
    options = ["data.eval=held_out.jsonl", *(["data.streaming=true", "data.window=4"] * chosen.get("streaming", False))]
    arguments = ["run", str(config), "-o", "run", *options]
    group = start_group(processes, arguments, cwd=tmp_path, printed=tmp_path / "printed")
    assert group.wait() == [0, 0], group.outputs
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert manifest["metrics"]["eval_loss"] > 0
    states = [json.loads(path.read_text()) for path in (tmp_path / "run").glob("checkpoint-*/trainer_state.json")]
    assert states[0]["max_steps"] == {"prepared": 6, "packed": 3, "stream": 5, "accumulated": 3}[kind]


def test_a_group_that_hangs_is_killed_and_its_lines_are_shown(processes, tmp_path):
    (tmp_path / "hanging.py").write_text("import time\n\nprint('hangs', flush=True)\ntime.sleep(1000)\n")
    group = start_group(processes, ["run", "-p", "hanging:Any"], cwd=tmp_path, printed=tmp_path / "printed")
    for command in group.commands:
        command.wait_until(lambda command=command: "hangs" in command.output)
    with pytest.raises(AssertionError, match="hangs"):
        group.wait(0)
    assert not any(command.running for command in group.commands)
