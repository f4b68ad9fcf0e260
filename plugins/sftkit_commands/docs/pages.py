"""The pages of the documentation: beside this module in an installed wheel, in ``docs/`` of a checkout."""

from __future__ import annotations

from pathlib import Path

from sftkit.api import ConfigError, Problem, nearest

_HERE = Path(__file__).resolve()
#: The wheel has the pages in the first directory (`scripts/hatch_build.py`). In a checkout, there is only the second.
PLACES = (_HERE.with_name("pages"), _HERE.parents[3] / "docs")
WHERE = "sftkit docs"


def pages() -> dict[str, Path]:
    """The files by topic, such as ``packing`` and ``plugins/packing``; pages of folders come last.

    Raises:
        ConfigError: if this installation has no pages.
    """
    root = next((place for place in PLACES if (place / "agents.md").is_file()), None)
    if root is None:
        raise ConfigError(Problem("the pages are missing from this installation", WHERE, "install sftkit-train again"))
    files = sorted(root.rglob("*.md"), key=lambda path: (len(path.relative_to(root).parts), path.as_posix()))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in files}


def title(path: Path) -> str:
    """The first heading of a page."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line[2:].strip() for line in lines if line.startswith("# ")), "")


def find(topic: str) -> tuple[str, Path]:
    """The name and the file of a page.

    Args:
        topic: its name. Capitals, a suffix ``.md``, and hyphens for underscores do not matter; the folder can be left
            out if no other page has the name.

    Raises:
        ConfigError: if there is no such page; with the nearest name.
    """
    known = pages()
    names = {_plain(name.rpartition("/")[2]): name for name in reversed(known)}  # of two, the one outside of folders
    names |= {_plain(name): name for name in known}
    wanted = _plain(topic.removesuffix(".md").removeprefix("docs/"))
    if wanted not in names:
        advice = f"{nearest(wanted, names)} `{WHERE} --list` lists the topics".strip()
        raise ConfigError(Problem(f"there is no page '{topic}'", WHERE, advice))
    return names[wanted], known[names[wanted]]


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
