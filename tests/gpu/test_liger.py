"""Liger's kernels and losses on the device, beside transformers' own layers and the core's loss.

In float32 they agree but for the order of sums. In bfloat16 both miss float32 by rounding; liger's must not miss it by
more than `FACTOR` times as much as transformers' layers do.
"""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

import pytest
import torch

from sftkit.testing import plugin_set, tiny_config
from sftkit.training.head import LossHead, Targets
from sftkit.training.loss import HeadLoss
from sftkit_plugins.liger import Liger
from sftkit_plugins.liger.catalogue import KERNELS
from sftkit_plugins.packing import Packing

pytestmark = pytest.mark.gpu
pytest.importorskip("liger_kernel", reason="needs liger-kernel")

FACTOR = 2.0
OTHER = {"cross_entropy": True}
CASES = [("llama", {}, False), ("llama", {}, True), ("llama", OTHER, True)]
CASES += [("qwen3", {}, False), ("gemma2", {}, True), ("gemma2", OTHER, False)]
INTERPRETER = Path(__file__).parents[1] / "plugins" / "liger" / "interpreter.py"


@pytest.fixture(scope="module", autouse=True)
def interpreted(device):
    """On a CPU, Triton's interpreter in the place of its compiler."""
    if device.type == "cpu":
        spec = importlib.util.spec_from_file_location("interpreter", INTERPRETER)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.fixture
def step(device, gradients):
    """The mean loss of a batch with untrained tokens, and the gradients, as the trainer computes them."""

    def run(model, loss, weighted=False):
        rows, columns = (2, 6) if device.type == "cpu" else (4, 250)
        ids = torch.randint(3, 320, (rows, columns), generator=torch.Generator().manual_seed(0)).to(device)
        labels = ids.clone()
        labels[:, :2] = labels[1, columns // 2 :] = -100
        weights = torch.linspace(0.1, 1.5, labels.numel(), device=device).view_as(labels) if weighted else None
        targets, head = Targets.of(labels, weights), LossHead(model, loss)
        with head.installed():
            total, _, _ = head.ask(model, {"input_ids": ids, "use_cache": False}, targets)
            (total / len(targets.tokens_K)).backward()
        return total.detach() / len(targets.tokens_K), gradients(model)

    return run


@pytest.fixture
def with_liger(step):
    """The same with liger's kernels in the model and the loss that they bring."""

    def run(model, weighted=False, **options):
        plugin = Liger(**options)
        loss = plugin_set(plugin).hook.make_loss(model=model, config=tiny_config())
        with plugin.training_context(model):
            return step(model, loss, weighted)

    return run


@pytest.mark.parametrize(("architecture", "options", "weighted"), CASES)
def test_losses_and_gradients_in_float32_are_those_without_liger(
    build, step, with_liger, distance, architecture, options, weighted
):
    loss, expected = step(build(architecture), HeadLoss(), weighted)

    liger_loss, found = with_liger(build(architecture), weighted, **options)

    assert liger_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert distance(found, expected) < 1e-4


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
def test_in_bfloat16_they_are_as_near_to_float32_as_without_liger(
    build, step, with_liger, distance, device, architecture, autocast
):
    # Triton's interpreter has no arithmetic in bfloat16: on a CPU only the loss, which is computed in float32.
    options = dict.fromkeys(KERNELS, False) if device.type == "cpu" else {}

    def half():
        return build(architecture, torch.float32 if autocast else torch.bfloat16)

    mixed = torch.autocast(device.type, torch.bfloat16) if autocast else contextlib.nullcontext()
    loss, expected = step(build(architecture), HeadLoss())
    with mixed:
        plain_loss, plain = step(half(), HeadLoss())
        liger_loss, found = with_liger(half(), **options)

    allowed = FACTOR * distance(plain, expected)
    assert distance(found, expected) <= allowed < 0.2
    assert liger_loss.item() == pytest.approx(loss.item(), rel=5e-3)
    assert plain_loss.item() == pytest.approx(loss.item(), rel=5e-3)


def test_the_model_is_bitwise_as_before_when_the_kernels_are_gone(build, device):
    model, ids = build("llama"), torch.arange(3, 43, device=device)[None]
    before = model(input_ids=ids, use_cache=False).logits

    with Liger().training_context(model):
        model(input_ids=ids, use_cache=False)

    assert torch.equal(model(input_ids=ids, use_cache=False).logits, before)


def test_a_packed_run_has_the_losses_of_one_without_liger(build, pipeline, losses, device):
    model, rows = build("llama").cpu(), [{"prompt": f"{n}? ", "completion": f"{n + 1}."} for n in range(24)]
    train = {"max_steps": 1, "per_device_train_batch_size": 1} if device.type == "cpu" else {"bf16": True}
    options = {"data": rows, "config": {"data": {"max_length": 16}}, "train": train}

    plain = losses(pipeline(model, Packing(), name="plain", **options).run())
    found = losses(pipeline(model, Packing(), Liger(), name="liger", **options).run())

    assert found == pytest.approx(plain, rel=1e-2)
