"""The pages of plugins: what they say of options, hooks and figures is generated from the code, and up to date."""

from __future__ import annotations

import datetime
import importlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import pytest

from sftkit.plugin.base import Field, Plugin, dataclass, hookimpl
from sftkit.plugin.describe import describe_options
from sftkit.plugin.option_types import as_yaml, option_type

SECTIONS = ["When to use it", "Options", "Example", "Cost and gain", "Source"]


@pytest.fixture
def script(root, monkeypatch):
    pytest.importorskip("tomllib", reason="before Python 3.11 it needs tomli")
    monkeypatch.syspath_prepend(str(root / "scripts"))
    return importlib.import_module("plugin_pages")


def test_the_pages_have_what_the_code_says(script):
    written = {path: path.read_text(encoding="utf-8") for path in script.pages()}
    assert [path.name for path, text in script.pages().items() if text != written[path]] == []


def test_every_page_of_a_plugin_has_the_same_sections_first(script):
    for name in script.built_in():
        text = (script.PAGES / f"{name}.md").read_text(encoding="utf-8")
        headings = re.findall(r"^##? (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
        assert headings[:6] == [name, *SECTIONS], name


def test_every_option_of_a_built_in_plugin_has_a_description(script):
    for name, cls in script.built_in().items():
        rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", script.options(cls), re.MULTILINE)
        assert [option for option, cells in rows if not cells.split("|")[-1].strip()] == [], name


def test_every_built_in_plugin_is_listed_once_in_the_index_and_the_readme(script):
    names = sorted(script.built_in())
    assert sorted(re.findall(r"\[(\w+)\]\(plugins/\1\.md\)", script.index())) == names
    assert sorted(re.findall(r"\[(\w+)\]\(docs/plugins/\1\.md\)", script.overview())) == names


def test_a_page_without_its_marks_is_an_error(script, tmp_path):
    page = tmp_path / "page.md"
    with pytest.raises(ValueError, match="needs the lines <!-- options --> and <!-- /options -->"):
        script.between(page, "# page\n\n<!-- options -->\n", "options", "")


def test_what_is_between_the_marks_is_replaced(script, tmp_path):
    text = script.between(tmp_path, "a\n<!-- x -->old<!-- /x -->\nb", "x", "new")
    assert text == "a\n<!-- x -->\n\nnew\n\n<!-- /x -->\nb"


def test_the_facts_say_how_to_select_and_install_a_plugin(script):
    @dataclass(frozen=True, kw_only=True)
    class Example(Plugin):
        requires = ("peft>=0.18",)
        conflicts = ("unsloth", "gptq")
        replaces: ClassVar[Mapping[str, str]] = {"optim": "", "seed": "size"}

        size: int

        @hookimpl
        def inject_noise(self, model): ...

    assert script.facts("example", Example).splitlines() == [
        "- **Select it** with `-p example:size=...`, or under `plugins` in the configuration.",
        '- **Install** `peft>=0.18`: `pip install "sftkit-train[peft]"`.',
        "- **Not together with** [gptq](gptq.md), [unsloth](unsloth.md).",
        "- **Replaces** `train.optim`, and `train.seed` by `size`.",
        "- **Hooks**: [`inject_noise`](../hooks.md#inject_noisemodel).",
    ]


def test_figures_compare_runs_that_differ_by_the_plugin_alone(script, tmp_path):
    def entry(rate, memory):
        return {"status": "done", "tokens_per_second": rate, "peak_gib": memory}

    step = {
        "1B: sftkit": entry(100, 20),
        "1B: sftkit + liger": entry(150, 10),
        "1B: sftkit + flash_attn + liger": entry(300, 10),
        "1B: trl": entry(50, 5),
        "1B: trl, liger": entry(60, 5),
        "1B: sftkit + flash_attn": {"status": "not reached"},
    }
    runs = [{"environment": {"packages": {"torch": "2.11"}}}]
    (tmp_path / "gpu-x.json").write_text(json.dumps({"card": "X", "runs": runs, "step": step}))
    table = script.measured("liger", tmp_path)
    assert "| 1B | `sftkit + liger` | `sftkit` | 1.50 × | 0.50 × |" in table
    assert table.count("×") == 2
    assert "On one X (torch 2.11;" in table
    assert script.measured("compile", tmp_path) == "Not measured on a GPU."


def test_a_default_and_a_description_may_be_those_of_pydantics_field():
    @dataclass(frozen=True, kw_only=True)
    class Written(Plugin):
        names: list[str] = Field(default_factory=lambda: ["a"], description="names")
        size: int = Field(gt=0, description="size")

    names, size = describe_options(Written)
    assert (names["default"], names["description"]) == ("[a]", "names")
    assert (size["default"], size["type"], size["description"]) == ("required", "int above 0", "size")


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (bool, "true or false"),
        (bool | Literal["auto"] | None, "true, false or auto"),
        (Literal["a", "b", "c"], "a, b or c"),
        (str | list[int], "str or list of int"),
        (tuple[Literal["a", "b"], ...], "list of a or b"),
        (dict[str, Any] | None, "mapping"),
        (str | Callable[..., Any] | None, "str or function"),
        (datetime.date, "date"),
        (Annotated[int, Field(gt=0, description="x")], "int above 0"),
        (Annotated[float, Field(ge=0, lt=1)], "float at least 0 and below 1"),
        (Annotated[int, Field(gt=0)] | None, "int above 0"),
    ],
)
def test_types_of_options_are_shown_in_words(annotation, words):
    assert option_type(annotation) == words


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), ({}, ""), (True, "true"), ({"a": False, "b": [1, "c"]}, "{a: false, b: [1, c]}"), (("x",), "[x]")],
)
def test_defaults_are_shown_as_yaml_has_them(value, text):
    assert as_yaml(value) == text
