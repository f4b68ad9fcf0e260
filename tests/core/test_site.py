"""The documentation as a site: it builds strictly, and pages read there as on GitHub."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
)
needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("material") is None, reason="the docs extra is not installed"
)


def build(root: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a checkout as `make docs` does."""
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(root / "scripts" / "site" / "mkdocs.yml")]
    variables = {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": os.pathsep.join([str(root), str(root / "plugins")])}
    return subprocess.run(
        [*command, "-d", str(directory)], env=os.environ | variables, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The site."""
    directory = tmp_path_factory.mktemp("site")
    made = build(ROOT, directory)
    assert made.returncode == 0, made.stderr
    return directory


class Loaded(HTMLParser):
    """What a page makes a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag, attrs):
        names = dict(attrs)
        if tag in ("script", "img", "iframe", "source") and names.get("src"):
            self.urls.append(names["src"])
        if tag == "link" and names.get("rel") in ("stylesheet", "icon", "preconnect", "preload"):
            self.urls.append(names["href"])


@needs_mkdocs
def test_the_site_builds_without_a_warning(built):
    assert (built / "quickstart" / "index.html").is_file()


@needs_mkdocs
def test_no_page_loads_anything_from_elsewhere(built):
    for page in built.rglob("*.html"):
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert [url for url in loaded.urls if re.match(r"(https?:)?//", url)] == [], page


@needs_mkdocs
def test_the_search_index_has_every_page_in_the_list(built):
    index = json.loads((built / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {"", "quickstart/", "zh/quickstart/", "plugins/peft/", "reference/hooks/", "reference/api/data/"} <= found


@needs_mkdocs
def test_options_are_not_broken_at_their_hyphens(built):
    page = (built / "agents" / "index.html").read_text(encoding="utf-8")
    assert '<code><span class="unbroken">sftkit docs --list</span></code>' in page
    assert '<code>sftkit init new.yaml <span class="unbroken">--from</span> FILE</code>' in page


@needs_mkdocs
def test_the_reference_has_what_docstrings_and_declarations_say(built):
    def text(name: str) -> str:
        return re.sub(r"<[^>]+>", "", (built / "reference" / name / "index.html").read_text(encoding="utf-8"))

    assert "the selected plugins" in text("hooks")
    assert "Packages that the plugin needs" in text("api/writing-plugins")  # a comment above an attribute
    assert "--max-new-tokens N" in text("commands")
    assert "A two-layer model with random weights" in text("testing")


@needs_mkdocs
@pytest.mark.parametrize("name", ["hookspecs.py", "api.py"])
def test_a_file_that_a_page_links_is_shown(built, name):
    (page,) = (built / "source").rglob(f"{name}/index.html")
    assert "def " in re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))


@pytest.fixture
def copied(tmp_path):
    """A copy of what the site is built from."""
    for name in ("docs", "examples", "benchmarks", "scripts", "sftkit", "tests", "plugins"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("*.md"), ROOT / "LICENSE", ROOT / "pyproject.toml"]:
        shutil.copy(path, tmp_path)
    return tmp_path


@needs_mkdocs
@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "added", "reported"),
    [
        ("memory.md", "[no page](nowhere.md)", "nowhere.md"),
        ("memory.md", "[no file](../sftkit/nowhere.py)", "../sftkit/nowhere.py"),
        ("memory.md", "[no heading](data.md#no-such-heading)", "no-such-heading"),
        ("memory.md", "```mermaid\nflowchart TB\n    a --> b\n```", "scripts/site/draw.py"),
        ("notes.md", "# A page that is not in the list", "notes.md"),
        ("README.md", "- [Memory again](memory.md)", "has these pages twice: memory.md"),
    ],
)
def test_a_mistake_in_a_page_fails_the_build(copied, page, added, reported):
    with (copied / "docs" / page).open("a", encoding="utf-8") as file:
        file.write(f"\n{added}\n")
    made = build(copied, copied / "site")
    assert made.returncode != 0
    assert reported in made.stderr


def elements(html: str) -> Counter[str]:
    """The elements of a page, without what is in code."""
    html = re.sub(r"<(pre|code)[^>]*>.*?</\1>", r"<\1>", html, flags=re.DOTALL)
    return Counter(re.findall(r"<(h\d|ul|ol|li|table|tr|pre|blockquote|strong|em|a|code)\b", html))


@needs_mkdocs
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_has_the_same_elements_on_the_site_as_on_github(page):
    import markdown
    from markdown_it import MarkdownIt

    text = page.read_text(encoding="utf-8")
    extensions = ["attr_list", "tables", "pymdownx.superfences", "pymdownx.tasklist", "pymdownx.quotes"]
    assert elements(markdown.markdown(text, extensions=extensions)) == elements(
        MarkdownIt("commonmark").enable("table").render(text)
    )


def test_the_chinese_quickstart_has_the_commands_of_the_english_one():
    def blocks(name: str) -> list[str]:
        text = (ROOT / name).read_text(encoding="utf-8")
        return re.findall(r"^```(?:sh|python|text)\n.*?^```", text, re.MULTILINE | re.DOTALL)

    assert len(blocks("docs/quickstart.md")) > 10
    assert blocks("docs/zh/quickstart.md") == blocks("docs/quickstart.md")


def test_the_tables_of_keys_are_those_of_the_models(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = runpy.run_path(str(ROOT / "scripts" / "config_tables.py"))
    text = script["PAGE"].read_text(encoding="utf-8")
    assert script["with_tables"](text) == text, "run python scripts/config_tables.py"


def github_anchors(text: str) -> set[str]:
    """The anchors of a page's headings as GitHub makes them."""
    without_code = re.sub(r"^( *)(`{3,}).*?^\1\2`*$", "", text, flags=re.MULTILINE | re.DOTALL)
    seen: Counter[str] = Counter()
    anchors = set()
    for heading in re.findall(r"^#{1,6} (.+)$", without_code, re.MULTILINE):
        plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
        anchor = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        anchors.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return anchors


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_to_headings_lead_somewhere_on_github(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            linked = page.parent / target if target else page
            assert anchor in github_anchors(linked.read_text(encoding="utf-8")), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_addresses_in_links_are_well_formed(page):
    for url in re.findall(r"\]\((\w+:[^)\s]+)\)", page.read_text(encoding="utf-8")):
        assert re.fullmatch(r"https://[\w.-]+\.[a-z]{2,}(/[\w./%~#?=&+:@-]*)?", url), url
