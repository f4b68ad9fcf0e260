"""Vocabularies of tokenizers, compared id by id."""

from __future__ import annotations

from typing import Any


def tokens_by_id(tokenizer: Any) -> list[str | None]:
    """The token of each id of a tokenizer, up to the largest id; None for an id without a token."""
    ids = tokenizer.get_vocab()
    found: list[str | None] = [None] * (1 + max(ids.values(), default=-1))
    for token, number in ids.items():
        found[number] = token
    return found


def vocabulary_difference(tokenizer: Any, other: Any) -> str:
    """The first id with another token in another tokenizer, in words; empty if there is none."""
    own, others = tokens_by_id(tokenizer), tokens_by_id(other)
    for number in range(max(len(own), len(others))):
        first, second = (some[number] if number < len(some) else None for some in (own, others))
        if first != second:
            return f"id {number} is {_shown(first)} here, and {_shown(second)} there"
    return ""


def vocabulary_digest(tokenizer: Any) -> str:
    """A digest (XXH3, 128 bits) of the token of each id."""
    import json

    import xxhash

    return str(xxhash.xxh3_128_hexdigest(json.dumps(tokens_by_id(tokenizer)).encode()))


def _shown(token: str | None) -> str:
    return "no token" if token is None else repr(token)
