"""`sftkit docs`: the pages, by their topics."""

from __future__ import annotations

import io
import json
import re

import pytest

from sftkit_commands.docs import pages as module, show as shown
from sftkit_commands.docs.pages import find, pages, title


def test_without_a_topic_the_page_for_agents_is_printed_as_it_is(in_process, root):
    assert in_process("docs") == (0, (root / "docs" / "agents.md").read_text())


def test_every_page_has_a_topic_and_a_title(root):
    expected = {path.relative_to(root / "docs").with_suffix("").as_posix() for path in root.glob("docs/**/*.md")}
    assert set(pages()) == expected
    assert all(title(path) for path in pages().values())


def test_the_page_for_agents_is_short_and_names_topics_that_exist(root):
    text = (root / "docs" / "agents.md").read_text()
    assert len(text.splitlines()) <= 200
    table = text.partition("## Pages to read for a task")[2]
    named = re.findall(r"`sftkit docs ([a-z][a-z/-]*)`", text) + re.findall(r"`([a-z/-]+)`", table)
    assert len(named) > 20
    assert {find(topic)[0] for topic in named} == set(named)


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        ("packing", "packing"),
        ("plugins/packing", "plugins/packing"),
        ("Flash-Attn", "plugins/flash_attn"),
        ("docs/check.md", "check"),
        ("readme", "README"),
    ],
)
def test_spellings_of_a_topic(topic, name):
    assert find(topic)[0] == name


def test_an_unknown_topic_is_an_error_with_the_nearest(in_process):
    code, printed = in_process("docs", "packin", "--json")
    assert code == 2
    (problem,) = json.loads(printed.splitlines()[0])["error"]
    assert problem["what"] == "there is no page 'packin'"
    assert problem["fix"] == "did you mean 'packing'? `sftkit docs --list` lists the topics"


def test_topics_and_pages_as_json(in_process):
    topics = json.loads(in_process("docs", "--list", "--json")[1])["topics"]
    assert {"topic": "check", "title": "Check"} in topics
    page = json.loads(in_process("docs", "check", "--json")[1])
    assert (page["topic"], page["title"]) == ("check", "Check")
    assert page["text"].startswith("# Check\n")


def test_a_terminal_gets_a_rendered_page(monkeypatch):
    from rich.console import Console

    screen = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    monkeypatch.setattr(shown, "console", lambda: screen)
    shown.show("# Title\n\n<!-- not run: needs a GPU -->\n\n    sftkit docs\n\n" + "word " * 40)
    lines = screen.file.getvalue().splitlines()
    assert not any("# Title" in line or "<!--" in line for line in lines)
    assert any("Title" in line for line in lines)
    assert max(map(len, lines)) <= 60


def test_an_installation_without_pages_says_so(monkeypatch, in_process, tmp_path):
    monkeypatch.setattr(module, "PLACES", (tmp_path,))
    code, printed = in_process("docs")
    assert code == 2
    assert "the pages are missing from this installation" in printed
