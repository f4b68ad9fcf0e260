"""The demo that ships inside sftkit: a tiny Llama's configuration, its tokenizer, its conversations and a run.

All of it is made by `scripts/make_demo.py`, except `run.yaml`, which is written by hand. Apache-2.0.
"""

from pathlib import Path

NAME = "demo"
"""Stands for the embedded model in `model.name`, and for the embedded data in `data.train` and `data.eval`."""

_HERE = Path(__file__).resolve().parent

MODEL = _HERE / "model"
"""A model directory without weights: `config.json`, the tokenizer and its chat template."""

TRAIN = _HERE / "data" / "train.jsonl"
"""The conversations to train on, one `{"messages": [...]}` a line."""

EVAL = _HERE / "data" / "eval.jsonl"
"""The held-out conversations; none of their prompts occurs in `TRAIN`."""

CONFIG = _HERE / "run.yaml"
"""The run that `sftkit run` does without a configuration."""
