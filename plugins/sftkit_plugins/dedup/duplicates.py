"""Which rows repeat an earlier one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sftkit.api import Columns, RowFilter, Skipped, chosen_columns
from sftkit_plugins.dedup.near import NearDuplicates
from sftkit_plugins.dedup.seen import SeenDigests


@dataclass(frozen=True)
class Normal:
    """How texts are normalised before they are compared."""

    ignore_case: bool = False
    ignore_space: bool = False

    def __call__(self, value: Any) -> Any:
        """The value with normalised texts, and without keys that are null."""
        if isinstance(value, str):
            text = " ".join(value.split()) if self.ignore_space else value
            return text.casefold() if self.ignore_case else text
        if isinstance(value, Mapping):
            return {key: self(inner) for key, inner in value.items() if inner is not None}
        return [self(inner) for inner in value] if isinstance(value, list | tuple) else value


@dataclass
class Duplicates(RowFilter):
    """Drops each row whose content an earlier row has.

    Args:
        columns: the columns that are compared; None for all.
        normal: how texts are normalised.
        near: finds rows that are similar to an earlier one; None for equal rows only.
    """

    columns: Sequence[str] | None
    normal: Normal
    near: NearDuplicates | None = None
    _seen: SeenDigests = field(default_factory=SeenDigests)

    @property
    def remembers(self) -> bool:
        """The decision on a row depends on those before it."""
        return True

    def __call__(self, rows: Columns) -> list[Skipped | None]:
        """Drop the rows that repeat one before them."""
        names = chosen_columns(rows, self.columns, "plugin dedup, option columns")
        some = [dict(zip(names, values, strict=True)) for values in zip(*(rows[name] for name in names), strict=True)]
        first = self._seen.number
        earlier = self._seen.add([_digest(self.normal(row)) for row in some])
        decided: list[Skipped | None] = []
        for number, (row, known) in enumerate(zip(some, earlier, strict=True), start=first):
            if known is not None:
                decided.append(Skipped("duplicate", earlier=known))
            elif self.near is not None and (found := self.near.add(number, row)) is not None:
                similar, share = found
                decided.append(Skipped("near duplicate", f"{share:.0%} similar", similar))
            else:
                decided.append(None)
        return decided


def _digest(row: Any) -> bytes:
    import xxhash

    text = json.dumps(row, ensure_ascii=False, sort_keys=True, default=_other)
    return xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"))


def _other(value: Any) -> str:
    """A value that JSON does not have, such as the bytes of an image."""
    import xxhash

    return f"bytes {xxhash.xxh3_128_hexdigest(value)}" if isinstance(value, bytes) else repr(value)
