"""Training arguments whose work plugins do, and the packages that plugins require."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement

from sftkit.config.source import ConfigSource
from sftkit.config.train_fields import check_train
from sftkit.errors import ConfigError
from sftkit.plugin.requirements import install_command, requirement_problem
from sftkit.plugin.resolve import resolve
from sftkit.run.manifest import versions
from sftkit.testing import plugin_set
from sftkit_plugins.hf import HF
from sftkit_plugins.peft import PEFT


@pytest.mark.parametrize("name", ["neftune_noise_alpha", "use_liger_kernel", "label_smoothing_factor", "packing"])
def test_the_plugin_that_replaces_an_argument_is_named(name: str) -> None:
    source = ConfigSource({"model": "demo", "data": "demo", "train": {name: 1}})
    plugin = name.split("_")[0].replace("use", "liger").replace("label", "loss")
    with pytest.raises(ConfigError, match=f"train.{name}: .* -> select plugin {plugin}"):
        resolve(source)


def test_without_such_a_plugin_the_argument_is_to_be_removed() -> None:
    ((key, _, fix),) = check_train({"use_liger_kernel": True})[1]
    assert key == "use_liger_kernel"
    assert fix.startswith("remove it")


def test_plugins_are_loaded_only_for_unknown_or_refused_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sftkit.plugin.resolve.plugin_advice", lambda key: pytest.fail(f"asked about {key}"))
    with pytest.raises(ConfigError, match="'many' is of the wrong type"):
        resolve(ConfigSource({"model": "demo", "data": "demo", "train": {"seed": "many", "max_seq_length": 64}}))


def test_an_argument_in_another_section_belongs_to_train() -> None:
    source = ConfigSource({"model": "demo", "data": {"train": "demo", "learning_rate": 1}})
    with pytest.raises(ConfigError, match=r"data\.learning_rate: no such key -> set train\.learning_rate"):
        resolve(source)


def test_the_fix_for_a_missing_package_installs_what_is_required() -> None:
    assert install_command(Requirement("peft>=0.18; python_version>'3'")) == 'pip install "peft>=0.18"'
    problem = requirement_problem("no-such-package[fast]>=1", "plugin x")
    assert problem is not None
    assert problem.fix == 'pip install "no-such-package[fast]>=1"'


def test_the_manifest_has_the_versions_of_what_the_plugins_require() -> None:
    pytest.importorskip("peft")
    assert "peft" in versions(plugin_set(PEFT()))
    assert "peft" not in versions(plugin_set(HF()))
