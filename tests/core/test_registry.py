"""Plugins are found without importing them, selected and checked, and all problems are reported at once."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from typing import Annotated

import pytest

from sftkit.cli.options import gather
from sftkit.config.source import ConfigSource, read_yaml
from sftkit.errors import ConfigError
from sftkit.plugin.base import Field, Plugin, dataclass, hookimpl
from sftkit.plugin.describe import one_plugin
from sftkit.plugin.registry import discover, load_class
from sftkit.plugin.select import Choice, choices_from, parse_choice, select
from sftkit.run.changes import change_name
from sftkit.testing import check_plugin, tiny_config


@dataclass(frozen=True, kw_only=True)
class Noise(Plugin):
    """A test plugin with options."""

    alpha: Annotated[float, Field(gt=0)] = 5.0
    name: str = "x"

    @hookimpl
    def model_options(self, config):
        return {"attn_implementation": self.name}


@dataclass(frozen=True, kw_only=True)
class Rival(Plugin):
    """Sets the same key and fills the same slot as others."""

    @hookimpl
    def model_options(self):
        return {"attn_implementation": "sdpa"}

    @hookimpl
    def adapt_model(self, model):
        return model


@dataclass(frozen=True, kw_only=True)
class Adapter(Plugin):
    """Fills the slot adapt_model."""

    @hookimpl
    def adapt_model(self, model):
        return model


@dataclass(frozen=True, kw_only=True)
class Needy(Plugin):
    """Asks for what is not there."""

    requires = ("no-such-package>=1", "pluggy>=99")
    needs_gpu = True

    @hookimpl
    def patch_kernels(self, model):
        pass


@dataclass(frozen=True, kw_only=True)
class Misspelt(Plugin):
    """Misspells a hook and an argument, and forgets a mark."""

    @hookimpl
    def inject_nose(self, model):
        pass

    @hookimpl
    def load_model(self, confg):
        pass

    def add_tokens(self, tokenizer):
        pass


class NotFrozen(Plugin):
    """Lacks the decorator."""

    @hookimpl
    def patch_kernels(self, model):
        pass


@dataclass(frozen=True, kw_only=True)
class Loner(Plugin):
    """Cannot be beside packing."""

    conflicts = ("packing",)

    @hookimpl
    def patch_kernels(self, model):
        pass


def ref(cls: type[Plugin]) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def chosen(*items: str | Plugin) -> list[Choice]:
    return choices_from(ConfigSource({"plugins": list(items)}))


def problems_of(*items: str | Plugin) -> str:
    return "\n".join(map(str, select(chosen(*items))[1]))


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Noise.__module__])


def test_discovery_imports_nothing():
    code = (
        "import sys; from sftkit.plugin.registry import discover; names = list(discover());"
        "assert 'neftune' in names, names; assert not any(m.startswith('sftkit_plugins') for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_selected_plugins_are_imported():
    code = (
        "import sys; from sftkit.plugin.select import select, Choice; select([Choice('neftune')]);"
        "assert 'sftkit_plugins.neftune' in sys.modules; assert 'sftkit_plugins.peft' not in sys.modules;"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("packing", "packing", {}),
        ("neftune:alpha=10", "neftune", {"alpha": 10}),
        ("neftune:alpha=1e-1", "neftune", {"alpha": 0.1}),
        ("peft:r=8,target_modules=[q_proj, v_proj],method=lora", "peft",
         {"r": 8, "target_modules": ["q_proj", "v_proj"], "method": "lora"}),
        ("completion_only:response_template=### Answer:", "completion_only", {"response_template": "### Answer:"}),
        ("completion_only:response_template= ### A, b:", "completion_only", {"response_template": " ### A, b:"}),
        ('completion_only:response_template="\\n### A:"', "completion_only", {"response_template": "\n### A:"}),
        ("completion_only:response_template=[1, 2]", "completion_only", {"response_template": [1, 2]}),
        ("my.module:Cls", "my.module:Cls", {}),
        ("my.module:Cls:a=1,b=true", "my.module:Cls", {"a": 1, "b": True}),
    ],
)  # fmt: skip
def test_a_plugin_argument_is_a_name_and_its_options(text, name, options):
    assert parse_choice(text, discover()) == Choice(name, options)


SPELLINGS = [("flash-attn", "flash_attn"), ("Completion-Only", "completion_only"), ("NEFTune", "neftune")]


@pytest.mark.parametrize(("spelling", "name"), SPELLINGS)
def test_hyphens_and_capitals_in_a_name_do_not_matter(spelling, name):
    known = discover()
    assert parse_choice(f"{spelling}:a=1", known) == Choice(name, {"a": 1})
    assert parse_choice(f"no:{spelling}", known) == Choice(name, dropped=True)
    for raw in ({spelling: {"a": 1}}, [{spelling: {"a": 1}}]):
        (choice,) = choices_from(ConfigSource({"plugins": raw}))
        assert (choice.name, choice.options) == (name, {"a": 1})
    assert one_plugin(spelling)["name"] == name
    _, choices = gather([f"plugins.{spelling}.a=1"], [spelling], model="m", data="d")
    assert [choice.name for choice in choices_from(ConfigSource({"plugins": choices}))] == [name, name]


def test_a_change_is_allowed_under_any_spelling_of_its_plugin():
    assert change_name("plugins.Flash-Attn.padding_free") == "plugins.flash_attn.padding_free"
    assert change_name("plugins.NEFTune") == "plugins.neftune"
    assert change_name("train.Learning-Rate") == "train.Learning-Rate"


def test_two_spellings_name_one_plugin_whose_options_are_merged():
    plugins, problems = select(chosen("NEFTune:alpha=7", {"Peft": {"r": 4}}, "PEFT:alpha=3"))
    assert not problems
    assert [item.name for item in plugins.selected][:2] == ["neftune", "peft"]
    assert (plugins.options()["peft"]["r"], plugins.options()["peft"]["alpha"]) == (4, 3)
    assert select(chosen("neftune", "no:NEFTune"))[0].selected[0].name == "hf"


def test_two_spellings_in_one_file_are_an_error_with_the_line_of_each(tmp_path):
    path = tmp_path / "sft.yaml"
    path.write_text("plugins:\n  NEFTune: {alpha: 3}\n  packing: {}\n  neftune: {alhpa: 4}\n")
    source = read_yaml(path)
    text = "\n".join(map(str, select(choices_from(source), source)[1]))
    assert f"{path}:4, plugins.neftune: plugin neftune is set twice, first in {path}:2 as NEFTune -> remove one" in text


def test_the_place_of_an_option_is_found_under_the_name_as_written(tmp_path):
    path = tmp_path / "sft.yaml"
    path.write_text("plugins:\n  NEFTune:\n    alhpa: 3\n")
    source = read_yaml(path)
    (problem,) = select(choices_from(source), source)[1]
    assert str(problem) == f"{path}:3, plugins.NEFTune.alhpa: no such option -> did you mean 'alpha'?"


def test_an_option_without_a_value_is_an_error():
    with pytest.raises(ConfigError, match="not of the form key=value"):
        parse_choice("neftune:10 percent", discover())


def test_defaults_go_last_and_can_be_dropped():
    plugins, problems = select(chosen("neftune", "no:pad"))
    assert not problems
    assert [item.name for item in plugins.selected] == [
        "neftune",
        "hf",
        "formats",
        "fast_tokens",
        "flash_attn",
        "metrics",
        "checks",
    ]


def test_a_plugin_that_is_not_selected_can_be_dropped_and_an_unknown_one_cannot():
    assert not select(chosen("no:packing"))[1]
    assert "there is no plugin pakcing -> did you mean 'packing'?" in problems_of("no:pakcing")


def test_later_options_override_earlier_ones_of_the_same_plugin():
    plugins, problems = select(chosen({"peft": {"r": 4, "alpha": 8}}, "peft:r=16"))
    assert not problems
    peft = plugins.selected[0].plugin
    assert (peft.r, peft.alpha) == (16, 8)


def test_names_yaml_mappings_and_objects_give_the_same_plugin():
    from sftkit_plugins.neftune import NEFTune

    by_object = select(chosen(NEFTune(alpha=10)))[0].options()
    assert by_object == select(chosen("neftune:alpha=10"))[0].options()
    assert by_object == select(choices_from(ConfigSource({"plugins": {"neftune": {"alpha": 10}}})))[0].options()


def test_a_class_that_is_not_installed_is_selected_by_its_module():
    plugins, problems = select(chosen(f"{ref(Noise)}:alpha=7"))
    assert not problems
    assert plugins.selected[0].plugin == Noise(alpha=7)


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(ConfigError, match=r"option alhpa: no such option -> did you mean 'alpha'\?"):
        Noise(alhpa=3)
    assert "did you mean 'alpha'?" in problems_of("neftune:alhpa=3")


def test_a_wrong_value_is_reported_alike_by_name_and_by_object():
    with pytest.raises(ConfigError, match="-1 is out of range: it must be above 0"):
        Noise(alpha=-1)
    assert "-1 is out of range: it must be above 0" in problems_of("neftune:alpha=-1")


def test_an_unknown_plugin_names_the_nearest():
    assert "no plugin is named 'packin' -> did you mean 'packing'?" in problems_of("packin")


def test_an_unknown_plugin_names_those_that_describe_themselves_by_the_word():
    assert "no plugin is named 'qlora' -> did you mean 'bitsandbytes'?" in problems_of("qlora")
    text = problems_of("lora")
    assert "peft" in text
    assert "have to do with it; `sftkit plugins NAME` describes one" in text


def test_two_plugins_on_one_slot_are_an_error():
    assert "both fill the slot adapt_model" in problems_of(Adapter(), Rival())


def test_a_selected_plugin_overrides_the_default_of_its_slot():
    plugins, _ = select(chosen(ref(Adapter)))
    assert plugins.hook.adapt_model(model="m", config=None, new_token_ids=[]) == "m"


def test_one_model_option_from_two_plugins_is_an_error():
    plugins, problems = select(chosen(Noise(), Rival()))
    assert not problems
    with pytest.raises(ConfigError, match=r"both plugin .*Noise and plugin .*Rival set 'attn_implementation'"):
        plugins.model_options(tiny_config())


def test_a_model_option_also_set_in_the_configuration_is_an_error():
    plugins, _ = select(chosen(Noise()))
    config = tiny_config(model={"options": {"attn_implementation": "eager"}})
    with pytest.raises(ConfigError, match=r"both model.options and plugin"):
        plugins.model_options(config)


def test_missing_packages_and_a_missing_gpu_are_reported_with_a_fix(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    text = problems_of(Needy())
    assert 'needs the package no-such-package, which is not installed -> pip install "no-such-package>=1"' in text
    assert "needs pluggy>=99, but 1" in text
    assert "needs a GPU" in text


def test_misspelt_hooks_arguments_and_missing_marks_are_errors():
    text = problems_of(Misspelt())
    assert "there is no hook 'inject_nose' -> did you mean 'inject_noise'?" in text
    assert "hook load_model has no argument 'confg' -> did you mean 'config'?" in text
    assert "add_tokens is a hook but not marked -> put @hookimpl above it" in text


def test_a_plugin_that_is_not_a_frozen_dataclass_is_refused():
    assert "NotFrozen is not a frozen dataclass" in problems_of(NotFrozen())


def test_declared_conflicts_are_errors():
    assert "cannot be used together" in problems_of(Loner(), "packing")


def test_every_problem_is_reported_at_once():
    text = problems_of("packin", "neftune:alhpa=1", Misspelt(), Adapter(), Rival())
    for part in ("packin", "alhpa", "inject_nose", "slot adapt_model"):
        assert part in text


def test_a_plugin_whose_import_raises_is_broken_and_harms_no_other(tmp_path, monkeypatch):
    (tmp_path / "broken_plugin_module.py").write_text("raise RuntimeError('no luck')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "is broken: RuntimeError: no luck" in problems_of("broken_plugin_module:Cls")
    assert select(chosen("neftune"))[1] == []


def test_two_distributions_that_claim_one_name_are_an_error():
    class Dist:
        def __init__(self, name):
            self.name, self.version, self.requires = name, "1", []

    def point(name):
        return metadata.EntryPoint("clash", f"{name}:P", "sftkit")._for(Dist(name))

    with pytest.raises(ConfigError, match="two distributions claim the plugin name 'clash': a and b"):
        load_class("clash", {"clash": [point("a"), point("b")]})


def test_check_plugin_names_what_is_wrong_with_a_plugin():
    with pytest.raises(AssertionError, match="inject_nose"):
        check_plugin(Misspelt(), without=("import", "run"))
