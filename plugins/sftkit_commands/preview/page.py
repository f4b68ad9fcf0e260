"""A preview as an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sftkit.api import TOKEN_KINDS, WEIGHT_MEANING, TokenRow


def write_html(path: Path, rows: Sequence[TokenRow], title: str, ids: bool, noted: Sequence[str] = ()) -> None:
    """Write a self-contained page, without scripts or requests.

    Args:
        path: the file to write.
        rows: the rows to show.
        title: the title of the page.
        ids: whether to add the token ids.
        noted: lines on what was noted about the rows of the split.
    """
    from jinja2 import Environment

    source = Path(__file__).with_name("preview.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    weighted = any(piece.weight != 1 for row in rows for piece in row.pieces)
    path.write_text(
        page.render(
            rows=rows, title=title, legend=TOKEN_KINDS, ids=ids, weight=WEIGHT_MEANING if weighted else "", noted=noted
        ),
        encoding="utf-8",
    )
