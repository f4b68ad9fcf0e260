"""Resuming with image-text models, whose weights have other names in checkpoints than in the model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from vision_models import drawn_image, tiny_vision_model

from sftkit import Pipeline


@pytest.mark.parametrize("kind", ["llava", pytest.param("qwen2_vl", marks=pytest.mark.slow)])
def test_a_resumed_run_equals_an_uninterrupted_one(kind: str, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))
    model, processor = tiny_vision_model(kind)
    answer = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    rows = [{"images": [drawn_image("red")], "messages": [question, answer]}] * 8

    def weights(name: str, steps: int, resume: bool = False) -> dict[str, torch.Tensor]:
        train = {"output_dir": str(tmp_path / name), "max_steps": steps, "save_steps": 2, "learning_rate": 1e-2}
        train |= {"per_device_train_batch_size": 2, "use_cpu": True, "lr_scheduler_type": "constant"}
        inputs = {"model": model, "tokenizer": processor, "data": rows, "plugins": ["vision"]}
        made = Pipeline(**inputs, train=train, resume=resume).run().model
        return copy.deepcopy(made.state_dict())

    whole = weights("whole", 4)
    weights("cut", 2)
    rest = weights("cut", 4, resume=True)
    assert all(torch.equal(rest[name], value) for name, value in whole.items())
