"""The hook ``make_optimizer``: what it may return, and what the trainer does with it."""

from __future__ import annotations

import json

import pytest
import torch

from sftkit import Pipeline, Plugin, dataclass, hookimpl
from sftkit.errors import ConfigError, RunError
from sftkit.testing import plugin_set, tiny_config, tiny_model, tiny_tokenizer
from sftkit.training.engine import Engine
from sftkit.training.groups import OptimizerMaker, learning_rates, require_same_groups, weight_groups

ROWS = [{"text": f"A number: {number}."} for number in range(16)]
TRAIN = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 0.1, "logging_steps": 1, "use_cpu": True}


def trained(model):
    return [weight for weight in model.parameters() if weight.requires_grad]


@dataclass(frozen=True, kw_only=True)
class Plain(Plugin):
    """Stochastic gradient descent."""

    @hookimpl
    def make_optimizer(self, model):
        return torch.optim.SGD(trained(model), lr=0.5)


@dataclass(frozen=True, kw_only=True)
class Forgetful(Plugin):
    """Forgets all weights but the first."""

    @hookimpl
    def make_optimizer(self, model):
        return torch.optim.SGD(trained(model)[:1], lr=0.5)


@dataclass(frozen=True, kw_only=True)
class Greedy(Plugin):
    """Takes weights that are not trained."""

    @hookimpl
    def make_optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.5)


@dataclass(frozen=True, kw_only=True)
class Elsewhere(Plugin):
    """Takes copies of the weights."""

    @hookimpl
    def make_optimizer(self, model):
        return torch.optim.SGD([weight.detach().clone() for weight in trained(model)], lr=0.5)


@dataclass(frozen=True, kw_only=True)
class Wrong(Plugin):
    """Returns groups in place of an optimizer."""

    @hookimpl
    def make_optimizer(self, model):
        return [{"params": trained(model)}]


@dataclass(frozen=True, kw_only=True)
class Nothing(Plugin):
    """Leaves it to ``train.optim``."""

    @hookimpl
    def make_optimizer(self, model):
        return None


class Averaging(torch.optim.SGD):
    """Notes in which mode it is when a step is made."""

    modes: list[str]

    def train(self):
        self.modes.append("train")

    def eval(self):
        self.modes.append("eval")

    def step(self, closure=None):
        self.modes.append("step")
        return super().step(closure)


MODES: list[str] = []


@dataclass(frozen=True, kw_only=True)
class Averages(Plugin):
    """Has another mode for evaluations."""

    @hookimpl
    def make_optimizer(self, model):
        made = Averaging(trained(model), lr=0.5)
        made.modes = MODES
        return made


def maker(plugin, engine=None):
    return OptimizerMaker(plugin_set(plugin), tiny_config(), engine)


def run(directory, plugins, **train):
    settings = {**TRAIN, "output_dir": str(directory), **train}
    known = {"tokenizer": tiny_tokenizer(), "plugins": [*plugins, "no:checks"], "train": settings}
    return Pipeline(tiny_model(), ROWS, **known).run()


def test_its_optimizer_makes_the_steps_and_the_schedule_scales_its_rate(tmp_path):
    before = tiny_model().get_input_embeddings().weight
    after = run(tmp_path / "run", [Plain()], max_grad_norm=0.0).model.get_input_embeddings().weight
    assert not torch.equal(before, after)
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["learning_rate"] for entry in entries if "loss" in entry] == [0.5, 0.25]


def test_none_means_the_optimizer_of_the_configuration(tmp_path):
    models = [run(tmp_path / str(number), plugins).model for number, plugins in enumerate(([], [Nothing()]))]
    weights = [model.get_input_embeddings().weight for model in models]
    assert torch.equal(*weights)


BROKEN = {
    Forgetful: "model.layers.0.self_attn.q_proj.weight and 18 more would not be trained",
    Greedy: "the weight lm_head.weight is in a group, but is not trained",
    Elsewhere: r"a weight of shape \(320, 32\) is in a group, but not in the model",
    Wrong: "it returned list -> return a torch.optim.Optimizer, or None",
}


@pytest.mark.parametrize("plugin", BROKEN, ids=lambda cls: cls.__name__)
def test_weights_that_are_forgotten_frozen_or_foreign_are_errors(plugin):
    model = tiny_model()
    model.lm_head.requires_grad_(False)
    with pytest.raises(RunError, match=BROKEN[plugin]) as error:
        maker(plugin())(model)
    assert error.value.problems[0].where.endswith(f":{plugin.__name__}, hook make_optimizer")


def test_a_broken_optimizer_stops_the_run_before_weights_are_loaded(tmp_path):
    settings = {**TRAIN, "output_dir": str(tmp_path / "run")}
    known = {"tokenizer": tiny_tokenizer(), "plugins": [Forgetful()], "train": settings}
    with pytest.raises(RunError, match="would not be trained"):
        Pipeline(tiny_model(), ROWS, **known).run()
    assert not (tmp_path / "run").exists()


class Sharding(Engine):
    """Has a part of the weights in each process."""

    name = "sharding"
    sharded = True


def test_shards_are_updated_only_by_optimizers_that_update_each_element_by_itself():
    assert type(maker(Plain(), Sharding())(tiny_model())) is torch.optim.SGD

    @dataclass(frozen=True, kw_only=True)
    class Matrices(Plugin):
        """Needs whole matrices."""

        @hookimpl
        def make_optimizer(self, model):
            return torch.optim.Adafactor(trained(model))

    with pytest.raises(ConfigError, match="the engine sharding shards them"):
        maker(Matrices(), Sharding())(tiny_model())


def test_it_is_in_training_mode_for_each_step_and_in_the_other_for_evaluations_and_saves(tmp_path):
    MODES.clear()
    run(tmp_path / "run", [Averages()], save_strategy="steps", save_steps=1)
    steps = [number for number, mode in enumerate(MODES) if mode == "step"][
        1:
    ]  # the first is for the size of the state
    assert [MODES[number - 1] for number in steps] == ["train", "train"]
    assert [MODES[number + 1] for number in steps] == ["eval", "eval"]


def test_groups_have_names_or_numbers():
    weights = [torch.nn.Parameter(torch.ones(2, 3)) for _ in range(3)]
    groups = [{"params": weights[:1], "name": "lm_head|embed$", "lr": 0.1}, {"params": weights[1:]}]
    optimizer = torch.optim.SGD(groups, lr=0.2, weight_decay=0.3)
    assert [(group.name, group.weights, group.learning_rate) for group in weight_groups(optimizer)] == [
        ("lm_head|embed$", 6, 0.1),
        ("1", 12, 0.2),
    ]
    assert learning_rates(optimizer) == {"learning_rate_lm_head_embed_": 0.1, "learning_rate_1": 0.2}
    assert learning_rates(torch.optim.SGD(weights, lr=0.2)) == {}


def test_a_state_of_other_groups_is_not_loaded():
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    one = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:]}], lr=0.1)
    other = torch.optim.SGD([{"params": weights[:2]}, {"params": weights[2:]}], lr=0.1)
    one.register_load_state_dict_pre_hook(require_same_groups)
    one.load_state_dict(one.state_dict())
    with pytest.raises(RunError, match=r"\[2, 1\] weights, not \[1, 2\]"):
        one.load_state_dict(other.state_dict())


def test_an_optimizer_that_was_passed_is_kept(tmp_path):
    from transformers import TrainingArguments

    from sftkit.training.optimizing_trainer import OptimizingTrainer

    model = tiny_model()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    trainer = OptimizingTrainer(model=model, args=arguments, optimizers=(own, None), make_optimizer=maker(Plain()))
    assert trainer.create_optimizer() is own
