# ruff: noqa: N803 (suffixes are shapes)
"""What is known of examples as they are encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Facts:
    """Counts over batches of examples."""

    trained: int = 0

    def add(self, ids_S: Any, labels_S: Any, offsets_N1: Any, **tokens: int | None) -> None:
        """Count a batch."""
        self.trained += int((labels_S != -100).sum())

    def as_dict(self) -> dict[str, Any]:
        """The counts as plain data."""
        return {"trained": self.trained}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Facts:
        """The counts from plain data."""
        return cls(**values)
