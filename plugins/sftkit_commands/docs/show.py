"""Pages in the terminal, and as they are in a pipe."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sftkit.api import console, output, show_table


def show(text: str) -> None:
    """Print a page: rendered in a terminal, else its Markdown."""
    screen = console()
    if not screen.is_terminal:
        print(text, end="")  # noqa: T201
        return
    from rich.markdown import Markdown

    screen.print(Markdown(re.sub(r"^<!--.*?-->\n", "", text, flags=re.MULTILINE | re.DOTALL), code_theme="ansi_dark"))


def show_list(titles: Mapping[str, str]) -> None:
    """Print the topics with their titles."""
    screen = console()
    show_table(screen, "Pages", ("topic", "title"), list(titles.items()))
    if not output().quiet:
        screen.print("\n`sftkit docs TOPIC` prints one.", markup=False)
