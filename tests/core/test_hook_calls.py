"""How hooks are called: names beside results and in errors, and wrappers everywhere."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from datasets import Features, Value

from sftkit import Pipeline, Plugin, Problem, dataclass, hookimpl
from sftkit.config.source import ConfigSource
from sftkit.errors import ConfigError, HookError
from sftkit.plugin.resolve import resolve
from sftkit.plugin.select import choices_from, select
from sftkit.testing import plugin_set, tiny_config, tiny_conversations, tiny_model, tiny_tokenizer


@dataclass(frozen=True, kw_only=True)
class Strict(Plugin):
    """Has a problem with every run."""

    @hookimpl
    def check_run(self, config):
        yield Problem("no", "data.max_length", "say yes")


@dataclass(frozen=True, kw_only=True)
class Lenient(Plugin):
    """Drops the problems of all plugins."""

    @hookimpl(wrapper=True)
    def check_run(self):
        results = yield
        return [(name, []) for name, _ in results]


@dataclass(frozen=True, kw_only=True)
class Buggy(Plugin):
    """Raises wherever it is called."""

    @hookimpl
    def check_run(self):
        yield from [][1]

    @hookimpl
    @contextmanager
    def inject_noise(self):
        raise KeyError("noise")
        yield

    @hookimpl
    def make_collator(self):
        raise ConfigError(Problem("not today", "collator"))

    @hookimpl(wrapper=True)
    def make_formatter(self):
        yield
        raise ZeroDivisionError("formatter")


def hooks_of(*plugins):
    found, problems = select(choices_from(ConfigSource({"plugins": list(plugins)})))
    assert not problems
    return found.hook


def source(*plugins):
    return ConfigSource({"model": "demo", "data": "demo", "plugins": list(plugins)})


def test_a_broadcast_returns_names_and_results_in_the_order_of_selection():
    results = hooks_of(Strict(), "neftune").model_options(config=tiny_config())
    assert results == []
    names = [name for name, _ in hooks_of("samples", Strict()).check_run(config=tiny_config(), plugins=None)]
    assert names[0] == "samples"
    assert names[1].endswith(":Strict")


def test_a_wrapper_of_check_run_is_honoured_when_a_configuration_is_resolved():
    with pytest.raises(ConfigError, match=r"data\.max_length: no -> say yes"):
        resolve(source(Strict(), "no:hf"))
    with pytest.raises(ConfigError) as error:
        resolve(source(Strict(), Lenient(), {"misspelt": {}}))
    assert "say yes" not in str(error.value)
    resolve(source(Strict(), Lenient()))


@pytest.mark.parametrize("hook", ["check_run", "make_formatter"])
def test_an_exception_in_a_hook_names_the_plugin_and_the_hook(hook):
    hooks = plugin_set(Buggy()).hook
    arguments = {"check_run": {"config": tiny_config(), "plugins": None}}
    columns = Features({"text": Value("string")})
    empty = {"columns": columns, "tokenizer": tiny_tokenizer(), "processor": None, "config": tiny_config()}
    with pytest.raises(HookError, match=rf"plugin \S*:Buggy, hook {hook}: \w+Error") as error:
        getattr(hooks, hook)(**arguments.get(hook, empty))
    assert error.value.__cause__ is not None


def test_an_exception_on_entering_a_context_names_the_plugin():
    ((_, context),) = plugin_set(Buggy()).hook.inject_noise(model=None)
    with pytest.raises(HookError, match="hook inject_noise: KeyError"), context:
        pass


def test_an_exception_of_the_body_passes_through_a_plugins_context_unchanged():
    model = tiny_model()
    ((_, context),) = hooks_of("neftune").inject_noise(model=model)
    with pytest.raises(KeyError, match="body"), context:
        raise KeyError("body")


def test_errors_of_sftkit_keep_their_class():
    with pytest.raises(ConfigError, match="not today"):
        plugin_set(Buggy()).hook.make_collator(tokenizer=None, processor=None, config=tiny_config())


def test_a_plugins_bug_in_a_run_names_the_plugin(tmp_path):
    with pytest.raises(HookError, match="Broken, hook patch_kernels: TypeError"):
        Pipeline(
            model=tiny_model(),
            tokenizer=tiny_tokenizer(),
            data=[{"text": row["messages"][0]["content"]} for row in tiny_conversations()],
            plugins=[Broken()],
            train={"output_dir": str(tmp_path / "run"), "max_steps": 1, "use_cpu": True},
        ).run()


def run_of(**options):
    return Pipeline(model=tiny_model(), tokenizer=tiny_tokenizer(), data=[{"text": "a"}], **options)


def failing_collator(examples):
    return examples[0]["no such key"]


@dataclass(frozen=True, kw_only=True)
class BrokenCollator(Plugin):
    """Makes a collator that fails."""

    @hookimpl
    def make_collator(self):
        return failing_collator


def test_a_bug_of_a_collator_names_its_plugin():
    with pytest.raises(HookError, match="BrokenCollator, hook make_collator: KeyError"):
        run_of(plugins=[BrokenCollator()]).prepare().verdicts()
    (wrong,) = [item for item in run_of(collator=failing_collator).prepare().verdicts() if item.status == "wrong"]
    assert (wrong.where, wrong.what) == ("Pipeline(collator=...)", "the collator fails: KeyError: 'no such key'")


@dataclass(frozen=True, kw_only=True)
class Broken(Plugin):
    """Adds a text to a number."""

    @hookimpl
    def patch_kernels(self):
        return "1" + 1
