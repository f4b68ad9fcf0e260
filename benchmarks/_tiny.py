"""What tiny steps spend outside forward, backward and optimizer, measured in a process of its own."""

from __future__ import annotations

import json
import tempfile
import time
from typing import Any

BEFORE = 20  # steps that do not count
PARTS = ("forward", "backward", "optimizer")


def parts_clock(steps: int) -> Any:
    """A callback of the Trainer that measures the parts of its steps. Forward: with the loss and its gradients."""
    import torch
    from transformers import TrainerCallback

    now = time.perf_counter

    class Callback(TrainerCallback):
        def __init__(self) -> None:
            self.seconds = dict.fromkeys(PARTS, 0.0)
            self.total = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
            if state.global_step == BEFORE:
                self._watch(known["model"], known["optimizer"])
                self.since = now()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == steps:
                self.total = now() - self.since

        def _watch(self, model: Any, optimizer: Any) -> None:
            began: list[float] = []

            def enter(*_: Any, **__: Any) -> None:
                began.append(now())

            def leave(part: str) -> Any:
                def left(*_: Any, **__: Any) -> None:
                    self.seconds[part] += now() - began.pop()

                return left

            model.register_forward_pre_hook(enter)
            model.register_forward_hook(leave("forward"))
            inner = getattr(optimizer, "optimizer", optimizer)
            inner.register_step_pre_hook(enter)
            inner.register_step_post_hook(leave("optimizer"))
            backward, end = torch.Tensor.backward, leave("backward")

            def measured(*arguments: Any, **options: Any) -> None:
                enter()
                backward(*arguments, **options)
                end()

            torch.Tensor.backward = measured  # type: ignore[method-assign]

    return Callback()


def child(name: str, steps: int) -> None:
    """Train the demo's model, as the demo does, and print the milliseconds of a step as JSON."""
    from sftkit.run.pipeline import Pipeline

    clock = parts_clock(steps)
    with tempfile.TemporaryDirectory() as directory:
        train = {
            "output_dir": directory,
            "max_steps": steps,
            "per_device_train_batch_size": 8,
            "learning_rate": 2e-3,
            "logging_steps": 100,
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        demo: dict[str, Any] = {
            "model": {"name": "demo", "init": "random"},
            "config": {"data": {"train": "demo", "max_length": 64}},
            "plugins": ["no:flash_attn"] if name == "sftkit, padded" else [],
        }
        if name == "transformers":
            _train_plainly(Pipeline(**demo, train={**train, "output_dir": f"{directory}/unused"}), train, clock)
        else:
            Pipeline(**demo, train=train, callbacks=[clock], overwrite=True).run()
    number = steps - BEFORE
    parts = {part: 1e3 * seconds / number for part, seconds in clock.seconds.items()}
    total = 1e3 * clock.total / number
    print("RESULT " + json.dumps({"ms": total, **parts, "other": total - sum(parts.values())}))


def _train_plainly(pipeline: Any, train: dict[str, Any], clock: Any) -> None:
    """The same rows with transformers' Trainer."""
    from _steps import collate
    from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

    from sftkit import demo

    rows = [{name: row[name].tolist() for name in ("input_ids", "labels")} for row in pipeline.prepare().data.train]
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(demo.MODEL))
    args = TrainingArguments(**train, report_to="none", remove_unused_columns=False)
    Trainer(model=model, args=args, train_dataset=rows, data_collator=collate, callbacks=[clock]).train()
