"""The examples of docs/hooks.md work in a run, and a run calls the hooks in the listed order."""

from __future__ import annotations

import functools
import re
import sys
import types
from pathlib import Path

import pytest

from sftkit import Pipeline, Plugin
from sftkit.api import load_trained, merged_model, quantize_model
from sftkit.data.tokenizing import use
from sftkit.plugin import hookspecs
from sftkit.plugin.calls import hook_names
from sftkit.testing import CHATML, tiny_conversations, tiny_model, tiny_tokenizer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "hooks.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\w+)\(.*?\)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
EXAMPLES = [
    pytest.param(hook, code, id=f"{hook}{number or ''}")
    for hook, section in SECTIONS.items()
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
]


ON_ADAPTERS = ("attach_adapter", "merge_adapter")
AFTERWARDS = ("merge_adapter", "quantize_model")  # called by `sftkit export`


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The directory of a tiny model with its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(path)
    tiny_tokenizer(chat_template=CHATML).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    """The directory of an adapter for this model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    path = tmp_path_factory.mktemp("adapter")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=2)).save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))


def recorded(cls, hook, calls):
    """The class, with its implementation of the hook noting each call."""
    method = vars(cls)[hook]

    @functools.wraps(method)
    def noting(self, *arguments):
        calls.append(hook)
        return method(self, *arguments)

    setattr(cls, hook, noting)
    return cls


def run(model, directory, plugins, rows=None, **train):
    settings = {"max_steps": 2, "output_dir": str(directory), "use_cpu": True, "report_to": "none"}
    rows = rows or tiny_conversations()
    return Pipeline(model=str(model), data=rows, plugins=plugins, train={**settings, **train}).run()


def export(trained, plugin, hook, model, directory):
    """Call a hook of ``sftkit export``."""
    if hook == "merge_adapter":
        loaded = load_trained(trained, dtype="float32", quantized=False, plugins=[plugin])
        assert not hasattr(merged_model(loaded), "peft_config")
    else:
        (directory / "quantized").mkdir()
        (logits,) = quantize_model(
            f"example:{type(plugin).__name__}", model, directory / "quantized", [[3, 4]], [[5, 6]]
        )
        assert logits.shape == (2, 320)


def plugin_in(code, monkeypatch):
    module = types.ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)
    exec(code, module.__dict__)
    (cls,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Plugin) and value is not Plugin
    ]
    return cls


@pytest.mark.parametrize(("hook", "code"), EXAMPLES)
def test_each_example_is_called_in_a_run(hook, code, model, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(use, "WORTHWHILE", 1)
    assert "from sftkit.api import" in code
    assert not re.search(r"^\s*(from|import) sftkit(?!\.api)", code, re.MULTILINE)
    calls = []
    cls = recorded(plugin_in(code, monkeypatch), hook, calls)
    wraps = "wrapper=True" in code
    rows = None
    if hook == "make_formatter" and not wraps:
        greetings = [{"hello": f"hello {number}", "reply": f"good day {number}"} for number in range(20)]
        answers = {"question": "what now?", "answers": ["wait", "go on"]}
        rows = [greeting | answers for greeting in greetings]
    result = run(adapter if hook in ON_ADAPTERS else model, tmp_path / "run", [cls()], rows)
    if hook in AFTERWARDS:
        export(result.directory, cls(), hook, model, tmp_path)
    assert set(calls) == {hook}
    assert result.metrics["train_loss"] > 0


def test_every_hook_has_an_example_that_fills_it():
    assert list(SECTIONS) == hook_names()
    for hook, section in SECTIONS.items():
        assert re.search(rf"@hookimpl.*?def {hook}\(", section, re.DOTALL), hook


def listed_hooks():
    listing = (hookspecs.__doc__ or "").split("::\n", 1)[1].split("\nA *slot*", 1)[0]
    code = "\n".join(line.partition("#")[0] for line in listing.splitlines())
    found = [name for name in re.findall(r"\w+", code) if name in hook_names()]
    return list(dict.fromkeys(found))


def test_a_run_calls_the_hooks_in_the_listed_order(adapter, tmp_path, monkeypatch):
    assert listed_hooks() == hook_names()
    monkeypatch.setattr(use, "WORTHWHILE", 1)
    calls = []
    bodies = {
        hook: f"    @hookimpl(wrapper=True)\n    def {hook}(self):\n        CALLS.append({hook!r}); return (yield)\n"
        for hook in hook_names()
    }
    bodies["quantize_model"] = bodies["quantize_model"].replace("(yield)", "(yield) or []")
    code = (
        "from sftkit.api import Plugin, dataclass, hookimpl\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Recorder(Plugin):\n"
        '    """Records the order of all hooks."""\n\n' + "\n".join(bodies.values())
    )
    module = types.ModuleType("recorder")
    module.CALLS = calls
    monkeypatch.setitem(sys.modules, "recorder", module)
    exec(code, module.__dict__)
    rows = [{"text": f"A number: {number}."} for number in range(16)]
    result = run(adapter, tmp_path / "run", [module.Recorder(), "no:checks"], rows)
    merged_model(load_trained(result.directory, dtype="float32", plugins=[module.Recorder()]))
    quantize_model("recorder:Recorder", tmp_path, tmp_path, [], [])
    assert list(dict.fromkeys(calls)) == hook_names()
