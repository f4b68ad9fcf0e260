"""The positions of templates, and the responses between them; in characters of a text, or in token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Template = str | list[int]
Region = tuple[int, int]
"""Start and end."""


def places(template: Template, whole: str | list[int]) -> list[Region]:
    """The positions of a template in a text, or in a list of token ids, in order.

    Raises:
        ValueError: for an empty template.
    """
    if not template:
        raise ValueError("the template must not be empty")
    starts = _in_text(template, whole) if isinstance(template, str) else _among_ids(template, whole)
    return [(start, start + len(template)) for start in starts]


def _in_text(template: str, text: str | list[int]) -> Iterator[int]:
    assert isinstance(text, str)
    at = text.find(template)
    while at >= 0:
        yield at
        at = text.find(template, at + 1)


def _among_ids(template: list[int], ids: str | list[int]) -> Iterator[int]:
    assert isinstance(ids, list)
    at = -1
    while True:
        try:
            at = ids.index(template[0], at + 1)
        except ValueError:
            return
        if ids[at : at + len(template)] == template:
            yield at


def between(responses: Sequence[Region], instructions: Sequence[Region] | None, end: int) -> list[Region]:
    """The regions to train, which may overlap.

    Args:
        responses: positions of the response template, in order, at least one.
        instructions: positions of the instruction template, in order; None if there is no such template.
        end: length of the text or list.

    Returns:
        The regions from each response template to the next instruction template or the end. Without an instruction
        template, the region after the last response template.
    """
    if instructions is None:
        return [(responses[-1][1], end)]
    return [(start, next((begin for begin, _ in instructions if begin >= start), end)) for _, start in responses]
