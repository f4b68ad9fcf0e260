"""The built-in plugins pass the checks of a plugin."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sftkit.api import plugin_from
from sftkit.plugin.registry import discover
from sftkit.testing import CHATML, examine_plugin, tiny_model, tiny_tokenizer
from sftkit.testing.conformance.declared import HEAVY

BUILT_IN = sorted(name for name, points in discover().items() if points[0].value.startswith("sftkit_plugins"))
#: Options that a plugin requires, or with which it runs on any machine.
OPTIONS = {
    "compile": "compile:backend=eager",
    "completion_only": 'completion_only:response_template="<|im_start|>assistant\\n"',
    "freeze": "freeze:spectrum=0.5",
    "lisa": "lisa:layers=1",
    "tensor_parallel": "tensor_parallel:size=2",
}
#: Plugins that another one needs.
BESIDE = {"bitsandbytes": ["peft"]}
#: Those whose hooks take longest, by what they compile or import.
SLOW = ("bitsandbytes", "compile", "deepspeed", "metrics")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The directory of a model that another one can learn from in the kit's run."""
    directory = tmp_path_factory.mktemp("models")
    tiny_model(seed=1).save_pretrained(directory)
    tiny_tokenizer(chat_template=CHATML).save_pretrained(directory)
    return directory


def examined(name, teacher, **options):
    chosen = f"distill:teacher={teacher}" if name == "distill" else OPTIONS.get(name, name)
    return examine_plugin(plugin_from(chosen), beside=BESIDE.get(name, ()), **options)


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name not in SLOW])
def test_a_built_in_plugin_passes_the_checks_of_its_hooks(name, teacher):
    report = examined(name, teacher, without=("import", "run"))
    assert not report.failed, str(report)
    assert report.passed


def test_built_in_plugins_import_no_heavy_library():
    modules = {point.value.partition(":")[0] for name in BUILT_IN for point in discover()[name]}
    code = f"import sys, {', '.join(sorted(modules))}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_plugin_passes_all_checks(name, teacher):
    report = examined(name, teacher)
    assert not report.failed, str(report)
