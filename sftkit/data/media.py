"""Pictures, sounds and films in rows: they are passed on as they are stored, and decoded when a batch needs them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, Features

#: Types of `datasets` that decode a file when a row is read.
MEDIA = ("Audio", "Image", "Pdf", "Video")


def has_media(features: Features) -> bool:
    """Whether a column has media, at any depth."""
    return next(_media_in(features), None) is not None


def read_rows(rows: Dataset, at: slice | np.ndarray) -> dict[str, Any]:
    """Some rows as columns, with media as ``{"path": ..., "bytes": ...}``."""
    if not has_media(rows.features):
        return rows.with_format(None)[at]
    decoded: dict[str, Any] = undecoded(rows.features).decode_batch(rows.with_format("arrow")[at].to_pydict())
    return decoded


def undecoded(features: Features) -> Features:
    """The features with media that are not decoded."""
    features = copy.deepcopy(features)
    for feature in _media_in(features):
        feature.decode = False
    return features


def _media_in(feature: Any) -> Iterator[Any]:
    if type(feature).__name__ in MEDIA:
        yield feature
    elif isinstance(feature, Mapping):
        for inner in feature.values():
            yield from _media_in(inner)
    elif isinstance(feature, list | tuple):
        for inner in feature:
            yield from _media_in(inner)
    elif hasattr(feature, "feature"):
        yield from _media_in(feature.feature)
