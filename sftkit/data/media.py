"""Pictures, sounds and films in rows: they are passed on as they are stored, and decoded when a batch needs them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, Features
    from PIL.Image import Image

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


def holds_files(feature: Any) -> bool:
    """Whether a column has media, or mappings as media are stored, at any depth."""
    if type(feature).__name__ in MEDIA:
        return True
    if isinstance(feature, Mapping):
        return {"path", "bytes"} <= {*feature} or any(map(holds_files, feature.values()))
    if isinstance(feature, list | tuple):
        return any(map(holds_files, feature))
    return holds_files(getattr(feature, "feature", None)) if hasattr(feature, "feature") else False


def without_files(value: Any) -> Any:
    """Rows whose opened pictures are copies, upright, that know of no file, and keep what is transparent in them.

    `datasets` stores a picture's file in the place of the picture, which may have been changed since it was opened; one
    without a file it writes in the format that it had, perhaps with losses.
    """
    if isinstance(value, dict):
        return {key: without_files(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_files(item) for item in value]
    return detach_media(value) if hasattr(value, "getexif") else value


def detach_media(picture: Image) -> Image:
    """A copy that knows of no file, upright; in a mode that PNG has where some of it is transparent."""
    from PIL import ImageOps

    copied = ImageOps.exif_transpose(picture)
    return copied.convert("RGBA") if "transparency" in copied.info or copied.mode in ("PA", "La") else copied


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
