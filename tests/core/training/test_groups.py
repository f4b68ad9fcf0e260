"""Processes that share a model have the same rows: each group of them counts once."""

from __future__ import annotations

import torch

from sftkit import Pipeline
from sftkit.plugin.base import Plugin, dataclass, hookimpl
from sftkit.run.shares import differences
from sftkit.testing import tiny_conversations
from sftkit.training.engine import Engine
from sftkit.training.evaluation import gathering_once
from sftkit.training.measures import Measures
from sftkit_plugins.checks.plan import plan_of


class Pairs(Engine):
    """Two neighbouring processes share a model."""

    sharing = 2


@dataclass(frozen=True, kw_only=True)
class Sharing(Plugin):
    """Fills the slot."""

    @hookimpl
    def make_engine(self):
        return Pairs()


class FourProcesses:
    """Of an accelerator, what is read here: the processes 0 and 1 have the value, and 2 and 3 twice the value."""

    num_processes = 4
    device = torch.device("cpu")

    def gather(self, tensor):
        return torch.cat([tensor, tensor, 2 * tensor, 2 * tensor])

    def reduce(self, tensor, reduction):
        return tensor * 6


def test_the_numbers_of_groups_follow_from_those_of_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    found = []
    for rank in "0123":
        monkeypatch.setenv("RANK", rank)
        found.append((Pairs().replicas, Pairs().replica))
    assert found == [(2, 0), (2, 0), (2, 1), (2, 1)]


def test_an_evaluation_gathers_the_rows_of_a_group_once():
    accelerator = FourProcesses()
    rows = torch.arange(6.0).reshape(3, 2)
    with gathering_once(accelerator, 2):
        found = accelerator.gather(rows)
    assert found.equal(torch.cat([rows, 2 * rows]))
    assert len(accelerator.gather(rows)) == 12


def test_a_log_entry_counts_the_tokens_of_a_group_once():
    measures = Measures()
    measures.begin_batch()
    measures.add(10, 4, torch.tensor(8.0), 4, {"token_accuracy": torch.tensor([1.0, 1.0, 0.0, 0.0])})
    entry = measures.log_entry(FourProcesses(), [{"trained_tokens": 7}], sharing=2)
    assert entry["trained_tokens"] == 7 + 12
    assert entry["token_accuracy"] == 0.5


def test_a_resumption_with_groups_of_another_size_has_steps_of_other_rows():
    train = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "average_tokens_across_devices": True}
    train["dataloader_drop_last"] = False
    run = {"train": train, "parts": [{"world_size": 4}], "config": {"data": {"streaming": False}}}
    pairs, all_four = ({**run, "engine": {"sharing": sharing}} for sharing in (2, 4))
    assert differences(pairs, pairs, 4) == ""
    assert differences(pairs, all_four, 4) == "a step has 2 rows instead of 4"


def test_the_plan_of_a_run_counts_groups(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    train = {"per_device_train_batch_size": 2, "output_dir": str(tmp_path), "num_train_epochs": 1}
    pipeline = Pipeline(model="demo", data=tiny_conversations(20), train=train, plugins=[Sharing()])
    plan = plan_of(pipeline.prepare())
    assert (plan.rows_per_step, plan.steps_per_epoch) == (4, 5)
