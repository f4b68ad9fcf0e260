"""Row 20 of the table of faults: rows that several processes cannot share equally."""

from __future__ import annotations

import json
import socket

import pytest


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


DATA = {
    "prepared": {},
    "packed": {"plugins": {"packing": {}}},
    "stream": {"streaming": True, "train": {"max_steps": 5, "num_train_epochs": 1}},
    "accumulated": {"train": {"gradient_accumulation_steps": 2}},
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in ("prepared", "stream"))) for kind in DATA]
)
def test_20_processes_with_unequal_shares_take_equal_steps_and_end(start, configure, tmp_path, kind):
    """Seven rows, and five to evaluate on, for two processes with batches of two."""
    rows = [{"prompt": f"What is {n}?", "completion": f" {n} is {'one more ' * (n % 4)}"} for n in range(7)]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row | {"prompt": "?"}) + "\n" for row in rows[:5]))
    chosen = DATA[kind]
    train = {"max_steps": -1, "num_train_epochs": 3, "save_steps": 3, "ddp_backend": "gloo", **chosen.get("train", {})}
    config = configure(rows=rows, train={**train, "eval_strategy": "epoch"}, plugins=chosen.get("plugins", {}))
    options = ["data.eval=held_out.jsonl", *(["data.streaming=true", "data.window=4"] * chosen.get("streaming", False))]
    port = str(free_port())
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    commands = [
        start("run", config, "-o", "run", *options, env={**shared, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"
    ]
    assert [command.wait() for command in commands] == [0, 0], "\n".join(command.output for command in commands)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert manifest["metrics"]["eval_loss"] > 0
    states = [json.loads(path.read_text()) for path in (tmp_path / "run").glob("checkpoint-*/trainer_state.json")]
    assert states[0]["max_steps"] == {"prepared": 6, "packed": 3, "stream": 5, "accumulated": 3}[kind]
