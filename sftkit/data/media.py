"""Images, audio and video in rows: passed on as they are stored, and decoded when a batch needs them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, Features
    from PIL.Image import Image

#: Types of `datasets` that decode a file when a row is read.
MEDIA = ("Audio", "Image", "Pdf", "Video")


def has_media(features: Features) -> bool:
    """Whether a column holds media, at any depth."""
    return any(map(_is_media, _nested(features)))


def read_rows(rows: Dataset, at: slice | np.ndarray) -> dict[str, Any]:
    """Some rows as columns, with media as ``{"path": ..., "bytes": ...}``, and JSON exactly as written."""
    features = rows.features
    if not has_media(features) and not any(map(_is_json, _nested(features))):
        return rows.with_format(None)[at]
    columns: dict[str, Any] = rows.with_format("arrow")[at].to_pydict()
    if has_media(features):
        without_json = {name: None if _has_json(feature) else feature for name, feature in features.items()}
        decoded = {name: feature for name, feature in without_json.items() if feature is not None}
        columns |= undecoded(type(features)(decoded)).decode_batch({name: columns[name] for name in decoded})
    for name, feature in features.items():
        if _is_json(feature):
            columns[name] = [None if text is None else json.loads(text) for text in columns[name]]
        elif _has_json(feature):
            columns[name] = [_parsed(value, feature) for value in columns[name]]
    return columns


def undecoded(features: Features) -> Features:
    """The features, with media that are not decoded."""
    features = copy.deepcopy(features)
    for feature in filter(_is_media, _nested(features)):
        feature.decode = False
    return features


def holds_files(feature: Any) -> bool:
    """Whether a column holds media, or mappings in the form in which media are stored, at any depth."""
    return any(
        _is_media(each) or (isinstance(each, Mapping) and {"path", "bytes"} <= {*each}) for each in _nested(feature)
    )


def detach_images(value: Any) -> Any:
    """Rows in which each opened image is replaced by `detach_image`.

    `datasets` would store the file that an image was opened from, although the image may have been changed since. An
    image without a file it would write in the image's original format, which may be lossy.
    """
    if isinstance(value, dict):
        return {key: detach_images(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [detach_images(item) for item in value]
    return detach_image(value) if hasattr(value, "getexif") else value


def detach_image(image: Image) -> Image:
    """An upright copy that is not linked to a file; transparent parts stay transparent in PNG."""
    from PIL import ImageOps

    copied = ImageOps.exif_transpose(image)
    return copied.convert("RGBA") if "transparency" in copied.info or copied.mode in ("PA", "La") else copied


def _nested(feature: Any) -> Iterator[Any]:
    """A feature, and the features inside it at any depth."""
    yield feature
    inner = feature.values() if isinstance(feature, Mapping) else feature if isinstance(feature, list | tuple) else ()
    for each in [feature.feature] if hasattr(feature, "feature") else inner:
        yield from _nested(each)


def _is_media(feature: Any) -> bool:
    return type(feature).__name__ in MEDIA


def _is_json(feature: Any) -> bool:
    return type(feature).__name__ == "Json"


def _parsed(value: Any, feature: Any) -> Any:
    """A stored value with its JSON text parsed, which keeps numbers that `datasets` would round."""
    if value is None or not _has_json(feature):
        return value
    if _is_json(feature):
        return json.loads(value)
    if isinstance(feature, Mapping):
        return {key: _parsed(item, feature[key]) for key, item in value.items()}
    inner = feature[0] if isinstance(feature, list) else feature.feature
    return [_parsed(item, inner) for item in value]


def _has_json(feature: Any) -> bool:
    return any(map(_is_json, _nested(feature)))
