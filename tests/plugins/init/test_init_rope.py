"""Scaled positions of other tools become the plugin rope_scaling."""

from __future__ import annotations

import pytest

from sftkit_commands.init.axolotl_run import translate as from_axolotl
from sftkit_commands.init.llamafactory_run import translate as from_llama_factory
from sftkit_commands.init.local import Places

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}


@pytest.fixture
def places(tmp_path):
    return Places(tmp_path, tmp_path)


@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic", "llama3"])
def test_the_types_of_llama_factory_keep_their_names(places, kind):
    found = from_llama_factory({"model_name_or_path": "a/b", "rope_scaling": kind, "cutoff_len": 8192}, places)
    assert found.values["plugins"]["rope_scaling"] == {"type": kind}
    assert found.entries["rope_scaling"].kind == "translated"


@pytest.mark.parametrize("nested", [False, True])
def test_the_parameters_of_axolotl_become_options(places, nested):
    given = {"overrides_of_model_config": {"rope_scaling": YARN}} if nested else {"rope_scaling": YARN}
    found = from_axolotl({"base_model": "a/b", **given}, places)
    assert found.values["plugins"]["rope_scaling"] == YARN
    assert "options" not in found.values["model"]
    assert [found.entries[key].kind for key in given] == ["translated"]


def test_other_overrides_of_the_configuration_stay_options_of_the_model(places):
    overrides = {"rope_scaling": YARN, "max_position_embeddings": 16384, "attention_dropout": 0.1}
    found = from_axolotl({"base_model": "a/b", "overrides_of_model_config": overrides}, places)
    assert found.values["model"]["options"] == {"attention_dropout": 0.1}
    assert "attention_dropout" in found.entries["overrides_of_model_config"].note


@pytest.mark.parametrize("scaling", [{"type": "longrope", "long_factor": [1.0]}, {**YARN, "mscale": 1.0}, "text"])
def test_what_the_plugin_does_not_have_is_lost_with_a_fix(places, scaling):
    for given in ({"rope_scaling": scaling}, {"overrides_of_model_config": {"rope_scaling": scaling}}):
        found = from_axolotl({"base_model": "a/b", **given}, places)
        assert "rope_scaling" not in found.values.get("plugins", {})
        [entry] = [found.entries[key] for key in given]
        assert (entry.kind, entry.fix) == ("lost", "model.options: {rope_parameters: {...}}")
