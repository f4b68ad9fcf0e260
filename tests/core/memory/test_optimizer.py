"""The size of an optimizer's state."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainingArguments

from sftkit import Plugin, dataclass, hookimpl
from sftkit.memory.made import optimizer_bytes
from sftkit.memory.optimizer import STATES, state_bytes
from sftkit.models.unloaded import without_data, without_weights
from sftkit.plugin.registry import discover, load_class
from sftkit.testing import plugin_set, tiny_config
from sftkit.training.groups import OptimizerMaker

PLAIN = ["adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop", "adafactor"]


@pytest.mark.parametrize("name", [*PLAIN, "adamw_8bit", "lion_8bit"])
def test_an_optimizer_keeps_what_is_counted(make_model, batch, tmp_path, name):
    if "8bit" in name:
        pytest.importorskip("bitsandbytes")
    model = make_model(hidden_size=128)
    arguments = TrainingArguments(output_dir=str(tmp_path), optim=name, use_cpu=True, report_to="none")
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    optimizer = kind(model.parameters(), **options)
    model(input_ids=batch["input_ids"], labels=batch["labels"]).loss.backward()
    optimizer.step()
    kept = sum(
        value.nbytes
        for state in optimizer.state.values()
        for key, value in state.items()
        if torch.is_tensor(value) and value.dim() and "qmap" not in key
    )
    assert state_bytes(name, list(model.parameters())) == pytest.approx(kept, rel=0.001, abs=0)


def test_every_optimizer_that_needs_no_further_package_is_counted():
    assert set(PLAIN) <= set(STATES)


def test_an_unknown_optimizer_counts_as_adamw_with_a_warning(make_model, caplog):
    weights = list(make_model().parameters())
    assert state_bytes("galore_adamw", weights) == state_bytes("adamw_torch", weights)
    assert "galore_adamw" in caplog.text


@pytest.mark.parametrize("name", ["muon", "schedule_free"])
def test_the_state_of_a_plugins_optimizer_is_counted(make_model, batch, name):
    model, plugins, config = make_model(), plugin_set(load_class(name, discover())()), tiny_config()
    optimizer = OptimizerMaker(plugins, config)(model)
    model(input_ids=batch["input_ids"], labels=batch["labels"]).loss.backward()
    if hasattr(optimizer, "train"):
        optimizer.train()
    optimizer.step()
    kept = sum(v.nbytes for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v))
    assert optimizer_bytes(make_model(), config, plugins) == kept
    assert optimizer_bytes(without_weights(make_model()), config, plugins) == kept


def test_groups_of_the_configured_optimizer_are_counted_as_it_is(make_model):
    pytest.importorskip("bitsandbytes")
    plugins, model = plugin_set(load_class("optimizer", discover())()), make_model()
    config = tiny_config(train={"optim": "adamw_bnb_8bit"})
    assert optimizer_bytes(model, config, plugins) == state_bytes("adamw_bnb_8bit", list(model.parameters()))


@dataclass(frozen=True, kw_only=True)
class NeedsData(Plugin):
    """Has an optimizer that looks at the values of weights."""

    @hookimpl
    def make_optimizer(self, model):
        class Looks(torch.optim.SGD):
            def step(self, closure=None):
                self.param_groups[0]["params"][0].sum().item()

        return Looks(model.parameters(), lr=0.1)


def test_a_state_that_is_not_known_counts_as_adamw_with_a_warning(make_model, caplog):
    model, plugins = make_model(), plugin_set(NeedsData())
    assert optimizer_bytes(model, tiny_config(), plugins) == state_bytes(None, list(model.parameters()))
    assert "NeedsData is not known" in caplog.text


def test_a_model_has_its_weights_again_also_after_an_error(make_model):
    model = make_model(tie_word_embeddings=True)
    before = dict(model.named_parameters(remove_duplicate=False))

    def fail():
        with without_data(model):
            inside = dict(model.named_parameters(remove_duplicate=False))
            assert all(weight.is_meta for weight in inside.values())
            assert inside["lm_head.weight"] is inside["model.embed_tokens.weight"]
            raise ValueError("that is enough")

    with pytest.raises(ValueError, match="enough"):
        fail()
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[name] is weight for name, weight in before.items())
