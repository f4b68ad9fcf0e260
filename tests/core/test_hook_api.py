"""The version of the plugin API: plugins that need another are refused, and its hooks change only with it."""

from __future__ import annotations

import json
import runpy
import warnings

import pytest
from pluggy import HookspecMarker

from sftkit import ConfigError, Pipeline, Plugin, dataclass, hookimpl
from sftkit.plugin import calls, versions
from sftkit.plugin.select import Choice, select
from sftkit.plugin.versions import API_VERSION, deprecated

hookspec = HookspecMarker("sftkit")


def needing(version):
    @dataclass(frozen=True, kw_only=True)
    class Needy(Plugin):
        """States the version of the API that it needs."""

        api = version

        @hookimpl
        def a_hook_of_its_own_time(self):
            pass

        @hookimpl
        def patch_kernels(self):
            pass

    return Needy()


@dataclass(frozen=True, kw_only=True)
class Fitting(Plugin):
    """Was written for the first version."""

    api = "1.0"

    @hookimpl
    def patch_kernels(self):
        pass


def problems_of(plugin):
    return [str(problem) for problem in select([Choice("needy", instance=plugin)])[1]]


@pytest.mark.parametrize("version", ["1.0", "1.7", "1.12"])
def test_a_plugin_for_this_or_an_earlier_second_number_is_taken(version, monkeypatch):
    monkeypatch.setattr(versions, "API_VERSION", version)
    assert problems_of(Fitting()) == []


REFUSED = [
    ("1.13", "upgrade sftkit: pip install --upgrade sftkit-train"),
    ("2.0", "upgrade sftkit: pip install --upgrade sftkit-train"),
    ("0.9", "upgrade the plugin, or install an sftkit with API 0"),
]


@pytest.mark.parametrize(("version", "fix"), REFUSED)
def test_a_plugin_for_another_version_is_refused_before_anything_is_read(version, fix, monkeypatch):
    monkeypatch.setattr(versions, "API_VERSION", "1.12")
    with pytest.raises(ConfigError) as error:
        Pipeline(model="no/such-model", data="no-such-file.jsonl", plugins=[needing(version)]).run()
    texts = [str(problem) for problem in error.value.problems]
    what = f"it needs version {version} of the plugin API, and this sftkit has 1.12"
    assert any(text.endswith(f"Needy: {what} -> {fix}") for text in texts), texts
    assert not [text for text in texts if "a_hook_of_its_own_time" in text]


@pytest.mark.parametrize("version", ["1", 1.0, "1.0.0", "new", None])
def test_what_is_no_version_of_the_api_is_an_error(version):
    (problem,) = problems_of(needing(version))
    assert problem.endswith(f'api = {version!r} is not a version of the API -> write it as text, as in api = "1.0"')


def test_the_list_of_plugins_shows_what_another_version_needs(in_process, monkeypatch):
    from sftkit_plugins.neftune import NEFTune

    monkeypatch.setattr(NEFTune, "api", "1.999")
    code, text = in_process("plugins", "--json")
    (info,) = [each for each in json.loads(text)["plugins"] if each["name"] == "neftune"]
    what = f"it needs version 1.999 of the plugin API, and this sftkit has {API_VERSION}"
    assert (code, info["status"]) == (
        0, f"incompatible: {what}; upgrade sftkit: pip install --upgrade sftkit-train"
    )  # fmt: skip
    assert "status: incompatible" in in_process("plugins", "neftune")[1]


class ToyHooks:
    """Hooks of which one goes away, and one loses an argument."""

    @hookspec(warn_on_impl=deprecated("1.3", "2.0", "use the hook new"))
    def old(self, model):
        """A hook."""

    @hookspec(firstresult=True, warn_on_impl_args={"setup": deprecated("1.4", "2.0", "use config")})
    def new(self, model, setup, config):
        """A hook with one argument too many."""


@dataclass(frozen=True, kw_only=True)
class Aged(Plugin):
    """Uses what is deprecated."""

    @hookimpl
    def old(self, model):
        pass

    @hookimpl
    def new(self, setup):
        return setup


@dataclass(frozen=True, kw_only=True)
class Current(Plugin):
    """Uses the hook without its deprecated argument."""

    @hookimpl
    def new(self, config):
        return config


@pytest.fixture
def warned(monkeypatch):
    """The warnings of a manager that is made for some plugins, with the results of the hook ``new``."""
    monkeypatch.setattr(calls, "Hooks", ToyHooks)

    def make(*plugins):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            manager, problems = calls.make_manager([(type(each).__name__.lower(), each) for each in plugins])
        assert not problems
        return caught, manager.hook.new(model=0, setup=1, config=2)

    return make


def test_a_deprecated_hook_or_argument_gives_one_warning_with_plugin_and_replacement(warned):
    caught, result = warned(Aged())
    of_api = "of the plugin API, and removed in 2.0"
    assert [str(each.message) for each in caught] == [
        f"plugin aged, hook old: deprecated since version 1.3 {of_api} -> use the hook new",
        f"plugin aged, hook new, argument setup: deprecated since version 1.4 {of_api} -> use config",
    ]
    assert {each.filename for each in caught} == {__file__}
    assert {each.category for each in caught} == {FutureWarning}
    assert result == 1


def test_a_plugin_that_uses_nothing_deprecated_gives_no_warning(warned):
    caught, result = warned(Current())
    assert (caught, result) == ([], 2)


@pytest.fixture(scope="module")
def record(root):
    return runpy.run_path(str(root / "scripts" / "record_hooks.py"))


def test_the_hooks_are_those_that_were_recorded_for_this_version(record):
    recorded = record["RECORD"].read_text(encoding="utf-8").splitlines()
    assert [API_VERSION, *record["present"]()] == recorded, "raise API_VERSION, and run scripts/record_hooks.py"


CHANGES = [
    (["slot a x", "broadcast b"], "1.4"),
    (["broadcast b", "slot a x"], "1.4"),
    (["slot a x y", "broadcast b"], "1.5"),
    (["slot a x", "broadcast b", "slot c"], "1.5"),
    (["slot a x"], "2.0"),
    (["slot a", "broadcast b"], "2.0"),
    (["slot a z", "broadcast b"], "2.0"),
    (["slot a x", "slot b"], "2.0"),
]


@pytest.mark.parametrize(("after", "version"), CHANGES)
def test_additions_raise_the_second_number_and_all_else_the_first(record, after, version):
    assert record["least_version"]("1.4", ["slot a x", "broadcast b"], after) == version
