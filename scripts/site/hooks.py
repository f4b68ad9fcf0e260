"""Hooks of mkdocs: pages from outside docs/, the navigation, links as on GitHub, and drawn diagrams."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import reference
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
DIAGRAMS = Path(__file__).parent / "diagrams"
LIST = "docs/README.md"
#: Pages outside docs/, and where the site has them. Any other file that a page links is shown below source/.
PAGES = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
    "benchmarks/README.md": "benchmarks.md",
}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json", ".sh": "bash"}
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=[)\s])")
LISTED = re.compile(r"\[([^\]]+)\]\(([^)\s#]+)\)")
CODE = re.compile(r"<code>([^<\n]+)</code>")
MERMAID = re.compile(r"^```mermaid\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def on_config(config: Any) -> None:
    """Set the navigation, and the anchors of headings to those of GitHub."""
    config.nav = navigation()
    config.mdx_configs["toc"]["slugify"] = slug


def on_files(files: Any, config: Any) -> None:
    """Add the pages from outside docs/, the files that pages link, and the generated reference."""
    for path, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    for path in linked_files():
        files.append(File.generated(config, uri_of(path), content=shown(path)))
    for uri, text in reference.pages().items():
        files.append(File.generated(config, uri, content=text))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links lead to pages of the site, and put drawings in place of diagrams."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]
    if page.file.src_uri.startswith("source/"):
        page.meta["search"] = {"exclude": True}
    if (path := path_of(page.file.src_uri)) is None:
        return markdown
    return MERMAID.sub(lambda found: drawing(found[1], path), site_links(markdown, path))


def on_page_content(html: str, **_: Any) -> str:
    """Keep short code in one line, and each option of longer code: browsers break lines after hyphens."""
    return CODE.sub(lambda found: f"<code>{unbroken(found[1])}</code>", html)


def unbroken(code: str) -> str:
    return re.sub(r"^.{1,24}$|(?<!\S)--[\w-]+", r'<span class="unbroken">\g<0></span>', code)


def slug(text: str, separator: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", separator)


def navigation() -> list[Any]:
    """The sections and pages of the list in docs/README.md, and the generated reference."""
    nav: list[Any] = [{"Home": "README.md"}]
    for section in re.split(r"^## ", (ROOT / LIST).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        entries = listed(body, LIST)
        if title == "Reference":
            entries += reference.navigation()
        if entries:
            nav.append({title: entries})
    if twice := [uri for uri, times in Counter(uris(nav)).items() if times > 1]:
        raise PluginError(f"{LIST} has these pages twice: {', '.join(twice)}")
    return nav


def uris(entries: list[Any]) -> Iterator[str]:
    """The pages below some entries of the navigation."""
    for entry in entries:
        for value in [entry] if isinstance(entry, str) else entry.values():
            if isinstance(value, str):
                yield value
            else:
                yield from uris(value)


def listed(text: str, path: str) -> list[Any]:
    """The pages that a list links: the first link of each item, or all links of an item that only has links."""
    entries: list[Any] = []
    for item in re.findall(r"^(?:-|\d+\.) (.*(?:\n  .*)*)", text, re.MULTILINE):
        found = [(name, repository_path(target, path)) for name, target in LISTED.findall(item)]
        only_links = not re.sub(r"\[[^\]]+\]\([^)]+\)|[\s,]", "", item)
        for name, target in found if only_links else found[:1]:
            if target is None or not (ROOT / target).is_file():
                raise PluginError(f"{path}: {name!r} leads nowhere")
            entries.append({name.strip("`"): uri_of(target)})
            if target.startswith("docs/") and target.endswith("/README.md"):
                below = listed((ROOT / target).read_text(encoding="utf-8"), target)
                entries[-1] = {name: [uri_of(target), *below]}
    return entries


def repository_path(target: str, path: str) -> str | None:
    """The path in the repository of what a page links; None for other addresses."""
    if "://" in target or target.startswith(("/", "mailto:")):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), unquote(target)))


def uri_of(path: str) -> str:
    """The page of the site that shows a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return PAGES.get(path) or f"source/{path}.md"


def path_of(uri: str) -> str | None:
    """The file of the repository that a page shows; None for generated ones."""
    if (ROOT / "docs" / uri).is_file():
        return f"docs/{uri}"
    return next((path for path, page in PAGES.items() if page == uri), None)


def site_links(markdown: str, path: str) -> str:
    """A page's text with links to files of the repository as links to pages of the site."""
    here = posixpath.dirname(uri_of(path)) or "."

    def replace(found: re.Match[str]) -> str:
        target = repository_path(found[1], path)
        if target is None or not (ROOT / target).is_file():
            return found[0]
        return posixpath.relpath(uri_of(target), here) + (found[2] or "")

    return LINK.sub(replace, markdown)


def linked_files() -> list[str]:
    """The files that are no pages, but linked from one."""
    paths = [*PAGES, *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
    found: set[str] = set()
    for path in paths:
        for target, _ in LINK.findall((ROOT / path).read_text(encoding="utf-8")):
            linked = repository_path(target, path)
            if linked and (ROOT / linked).is_file() and uri_of(linked).startswith("source/"):
                found.add(linked)
    return sorted(found)


def shown(path: str) -> str:
    """A page that shows a file: Markdown as it is, anything else as code."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    fence = "`" * 5
    language = LANGUAGES.get(posixpath.splitext(path)[1], "text")
    return f"# {posixpath.basename(path)}\n\n`{path}` in the repository:\n\n{fence}{language}\n{text}{fence}\n"


def drawing(source: str, path: str) -> str:
    """The drawing of a Mermaid diagram, made by scripts/site/draw.py: no browser loads Mermaid from elsewhere."""
    file = DIAGRAMS / f"{hashlib.sha256(source.encode()).hexdigest()[:12]}.svg"
    if not file.is_file():
        raise PluginError(f"{path}: a diagram has changed; draw it with `python scripts/site/draw.py`")
    return f'<div class="diagram">{file.read_text(encoding="utf-8")}</div>\n'
