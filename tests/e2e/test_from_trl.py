"""Every block of docs/from-trl.md runs, and the script, YAML file and `Pipeline` of a section give the same weights."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from sftkit.cli import app
from sftkit.plugin.requirements import has_gpu

PAGE = Path(__file__).resolve().parents[2] / "docs" / "from-trl.md"
AS_THE_SCRIPT = re.compile(r"^# as the script: (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```(python|yaml)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
GPU = "needs a GPU|FlashAttention2|unsloth"  # errors of sftkit, transformers and Python
#: Sections that fail on this machine, and what their errors match.
FAILING = {
    "Flash Attention 2": GPU,
    "unsloth": GPU,
    "Liger kernels": GPU,
    "GPTQ": "plugin gptq",  # the package is missing, or groups of 128 do not fit the tiny model
}

TITLES = [
    "Quick start",
    "A model of your own",
    "Train on completions only",
    "Train on the assistant's turns only",
    "Token ids as the template",
    "Special tokens for a chat format",
    "Data formats",
    "Formatting functions",
    "Packing",
    "Packing with a formatting function",
    "Control over the pretrained model",
    "Adapters",
    "Adapters on a base in 8 bits",
    "Flash Attention 1",
    "Flash Attention 2",
    "Model creation utility",
    "NEFTune",
    "unsloth",
    "Liger kernels",
    "Best practices",
    "Several GPUs",
    "GPTQ",
    "SFTTrainer, SFTConfig and datasets",
]


class Section(NamedTuple):
    """The blocks of a section: files by name, and what is run by kind."""

    files: dict[str, str]
    runs: dict[str, str]


def sections() -> dict[str, Section]:
    """The sections with blocks, by title."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    found = {}
    for title, text in zip(parts[::2], parts[1::2], strict=True):
        section = Section({}, {})
        for language, code in BLOCK.findall(text):
            first = code.partition("\n")[0].removeprefix("# ")
            if language == "yaml":
                section.files[next(word for word in shlex.split(first) if word.endswith(".yaml"))] = code
                section.runs["yaml"] = first
                section.runs.update(("as the script", command) for command in AS_THE_SCRIPT.findall(code))
            elif first.endswith(".py"):
                section.files[first] = code
            else:
                section.runs["script" if "from sftkit_trl import" in code else "pipeline"] = code
        if section.runs:
            found[title] = section
    return found


SECTIONS = sections()


def run_script(code: str) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(code, namespace)
    namespace["trainer"].save_model()


def run_yaml(command: str) -> None:
    program, *arguments = shlex.split(command)
    assert program == "sftkit"
    app(arguments, standalone_mode=False)


def run_pipeline(code: str) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(code, namespace)
    assert namespace["result"].metrics["train_loss"] > 0


RUN: dict[str, Callable[[str], None]] = {
    "script": run_script,
    "yaml": run_yaml,
    "as the script": run_yaml,
    "pipeline": run_pipeline,
}


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """The weights that a run saved: of the model, or of its adapter."""
    (file,) = (path for path in directory.rglob("*model.safetensors") if "checkpoint-" not in str(path))
    return load_file(file)


def run(section: Section) -> dict[str, dict[str, torch.Tensor]]:
    """The final weights of each block of a section."""
    found = {}
    for kind, code in section.runs.items():
        RUN[kind](code)
        found[kind] = weights(Path("runs").rename(kind))
    return found


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=0, msg=name)


@pytest.fixture
def section(request, workplace, no_estimate, monkeypatch) -> Section:
    """A section by title; its files are written to the working directory."""
    found = SECTIONS[request.param]
    if "meta-llama" in str(found) and not (workplace / "meta-llama").exists():
        pytest.skip("the tokenizer of Llama 2 is not available")
    monkeypatch.syspath_prepend(workplace)
    monkeypatch.delitem(sys.modules, "prompts", raising=False)
    for name, text in found.files.items():
        Path(name).write_text(text, encoding="utf-8")
    return found


#: Slow ones: their blocks do what those of another section do, or what another test does with the same plugins.
ALIKE = (
    "Adapters on a base in 8 bits",
    "Control over the pretrained model",
    "Packing with a formatting function",
    "Train on the assistant's turns only",
    "Token ids as the template",
    "Special tokens for a chat format",
    "Formatting functions",
    "Flash Attention 1",
    "Model creation utility",
    "A model of your own",
    "Data formats",
    "Several GPUs",
    "NEFTune",
    "Best practices",
    "Train on completions only",
)
COMPARED = [
    pytest.param(title, marks=[pytest.mark.slow] if title in ALIKE else [])
    for title in SECTIONS
    if title not in FAILING
]


@pytest.mark.parametrize("section", COMPARED, indirect=True)
def test_all_blocks_of_a_section_end_with_the_same_weights(section):
    found = run(section)
    assert_equal(found["yaml"], found["pipeline"])
    if "as the script" in found:
        assert_equal(found["as the script"], found["script"])


@pytest.mark.parametrize("section", FAILING, indirect=True)
def test_sections_report_what_is_missing(section, request):
    error = FAILING[request.node.callspec.params["section"]]
    if error is GPU and has_gpu():
        pytest.skip("this machine has a GPU")
    for kind, code in section.runs.items():
        with pytest.raises(Exception, match=error):
            RUN[kind](code)


def test_the_page_has_the_sections_of_trls_page_in_order():
    assert re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE) == TITLES
    assert [title for title in TITLES if title in SECTIONS] == TITLES[:-1]
    assert all({"yaml", "pipeline"} <= section.runs.keys() for section in SECTIONS.values())


def test_the_page_shows_how_to_get_the_weights_of_each_script():
    """Except where the EOS that TRL adds has another id for each tokenizer, and for sections that fail here."""
    without = {title for title, section in SECTIONS.items() if "as the script" not in section.runs}
    assert without == {"Data formats", "Best practices", *FAILING}
