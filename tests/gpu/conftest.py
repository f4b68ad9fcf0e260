"""Tests of what only a GPU can show, on one CUDA device.

With SFTKIT_GPU_TOY=1 they run on the CPU, with smaller models, to try the tests themselves. With neither, each is
skipped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

TOY = os.environ.get("SFTKIT_GPU_TOY") == "1"
# cuBLAS reads it before its first product, and gives the same bits twice only with it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
if TOY:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

#: Large enough for the kernels of a GPU, and small enough for its tests to be quick.
GPU_SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
GPU_SIZES |= {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
TOY_SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TOY_SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
NOTHING: Mapping[str, Any] = {}
GPT2 = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """The GPU; in toy mode the CPU."""
    if TOY:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU; SFTKIT_GPU_TOY=1 tries the tests on the CPU")
    return torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def free_memory(device: torch.device) -> Iterator[None]:
    """Gives back what a test held on the card, which several processes share."""
    yield
    if device.type == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def build(device: torch.device) -> Callable[..., Any]:
    """Makes a model on the device, in training mode: ``build(architecture, dtype, **config)``.

    Its weights are rounded to bfloat16, so that models in both precisions have the same. They are large enough for
    attention to matter, and small enough for layers not to amplify rounding.
    """
    from sftkit.testing import tiny_model

    def made(architecture: str = "llama", dtype: torch.dtype = torch.float32, **options: Any) -> Any:
        sizes: dict[str, Any] = dict(TOY_SIZES if device.type == "cpu" else GPU_SIZES)
        if architecture == "gpt2":
            sizes = {GPT2[name]: size for name, size in sizes.items() if name in GPT2}
        width = sizes.get("hidden_size") or sizes["n_embd"]
        sizes |= {"initializer_range": 0.8 / width**0.5, "max_position_embeddings": 512}
        model = tiny_model(architecture, **{**sizes, **options})
        for weight in model.parameters():  # not the buffers: frequencies of positions stay in float32
            weight.data = weight.data.to(torch.bfloat16).to(dtype)
        return model.to(device).train()

    return made


@pytest.fixture
def pipeline(device: torch.device, tmp_path: Path) -> Callable[..., Any]:
    """Makes a run of a few steps on the device: ``pipeline(model, *plugins, name=, train=, ...)``."""
    from sftkit import Pipeline
    from sftkit.testing import CHATML, tiny_conversations, tiny_tokenizer

    def made(model: Any, *plugins: Any, name: str = "run", train: Mapping[str, Any] = NOTHING, **options: Any) -> Any:
        values = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1}
        values |= {"save_strategy": "no", "lr_scheduler_type": "constant", "use_cpu": device.type == "cpu"}
        values |= {"output_dir": str(tmp_path / name), **train}
        options = {"data": tiny_conversations(24), "config": {"data": {"max_length": 128}}} | options
        tokenizer = tiny_tokenizer(chat_template=CHATML)
        return Pipeline(model=model, tokenizer=tokenizer, plugins=plugins, train=values, **options)

    return made


@pytest.fixture(scope="session")
def losses() -> Callable[[Any], list[float]]:
    """The loss of each step of a run, from its log."""

    def read(result: Any) -> list[float]:
        lines = (result.directory / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]

    return read


@pytest.fixture(scope="session")
def distance() -> Callable[..., float]:
    """How far tensors are from expected ones, all of them together: ``|found - expected| / |expected|``.

    Takes two tensors, or two mappings of the same names.
    """

    def measured(found: Any, expected: Any) -> float:
        if torch.is_tensor(found):
            found, expected = {"": found}, {"": expected}
        assert found.keys() == expected.keys()
        pairs = [(found[name].double().cpu(), expected[name].double().cpu()) for name in expected]
        apart = sum(float((one - two).square().sum()) for one, two in pairs)
        return (apart / sum(float(two.square().sum()) for _, two in pairs)) ** 0.5

    return measured


@pytest.fixture(scope="session")
def gradients() -> Callable[[Any], dict[str, torch.Tensor]]:
    """The gradients of a model by the names of its weights."""

    def read(model: Any) -> dict[str, torch.Tensor]:
        return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}

    return read
