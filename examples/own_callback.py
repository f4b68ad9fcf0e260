"""Follow a run with a callback, then read its metrics and its log.

python examples/own_callback.py --model Qwen/Qwen3-0.6B --data train.jsonl --steps 50 --output runs/followed
"""

import argparse
import json

from transformers import TrainerCallback

from sftkit import Pipeline


class BestLoss(TrainerCallback):
    """Keeps the lowest training loss that was logged."""

    best = float("inf")

    def on_log(self, args, state, control, logs=None, **_):
        self.best = min(self.best, (logs or {}).get("loss", self.best))


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="Qwen/Qwen3-0.6B", help="directory or hub name")
parser.add_argument("--data", default="train.jsonl", help="file or hub name")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--output", default="runs/followed")
arguments = parser.parse_args()

best = BestLoss()
result = Pipeline(
    model=arguments.model,
    data=arguments.data,
    train={"max_steps": arguments.steps, "logging_steps": 1, "output_dir": arguments.output},
    callbacks=[best],
    overwrite=True,
).run()
log = [json.loads(line) for line in (result.directory / "log.jsonl").read_text().splitlines()]
print(f"train_loss {result.metrics['train_loss']:.3f}, best {best.best:.3f}, {len(log)} log entries")
