"""Draw the Mermaid diagrams of the documentation into scripts/site/diagrams: needs npm, a network and Chromium.

The site shows these drawings, so that neither building nor reading it loads anything from elsewhere.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIAGRAMS = Path(__file__).parent / "diagrams"
MERMAID = "mermaid@11.17.2"
BLOCK = re.compile(r"^```mermaid\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
#: The text of the page colours it, in the light and the dark scheme.
STYLE = """
    .node rect, .node polygon { fill: transparent !important; stroke: currentColor !important; stroke-opacity: .45; }
    .cluster rect { fill: currentColor !important; fill-opacity: .05; stroke: none !important; }
    .flowchart-link { stroke: currentColor !important; stroke-opacity: .6; }
    .marker, .marker path { fill: currentColor !important; stroke: currentColor !important; }
    .label, .label p, .nodeLabel, .cluster-label, text, span { color: currentColor !important; fill: currentColor; }
"""
DRAW = """async ([source, style]) => {
    mermaid.initialize({startOnLoad: false, theme: "neutral", themeCSS: style, flowchart: {htmlLabels: false, nodeSpacing: 30, rankSpacing: 32, padding: 10, wrappingWidth: 400},
                        fontFamily: "system-ui, sans-serif", deterministicIds: true});
    return (await mermaid.render("diagram", source)).svg;
}"""


def main() -> None:
    """Draw every diagram that has no drawing, and remove the drawings of diagrams that are gone."""
    sources = {}
    for page in sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]):
        for source in BLOCK.findall(page.read_text(encoding="utf-8")):
            sources[DIAGRAMS / f"{hashlib.sha256(source.encode()).hexdigest()[:12]}.svg"] = source
    for file in set(DIAGRAMS.glob("*.svg")) - set(sources):
        file.unlink()
    if missing := {file: source for file, source in sources.items() if not file.is_file()}:
        for file, svg in zip(missing, drawn(list(missing.values())), strict=True):
            file.write_text(svg + "\n", encoding="utf-8")
            print(file)


def drawn(sources: list[str]) -> list[str]:
    """The drawings of diagrams, by the released Mermaid in a browser."""
    from playwright.sync_api import sync_playwright

    browser = shutil.which("chromium")
    if browser is None:
        sys.exit("chromium is not installed")
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        subprocess.run(["npm", "pack", "--silent", MERMAID], cwd=directory, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(directory).glob("*.tgz"))) as archive:
            archive.extract("package/dist/mermaid.min.js", directory, filter="data")
        page = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        page.set_content("<body></body>")
        page.add_script_tag(path=Path(directory, "package/dist/mermaid.min.js"))
        return [page.evaluate(DRAW, [source, STYLE]) for source in sources]


if __name__ == "__main__":
    main()
