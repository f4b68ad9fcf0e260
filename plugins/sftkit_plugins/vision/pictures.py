"""Pictures as data holds them, and as they are carried to the batch: a path, or the bytes of a file."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from sftkit.data.media import detached
from sftkit.errors import DataError, Problem

if TYPE_CHECKING:
    from PIL.Image import Image

Reference = dict[str, Any]
"""``{"path": ...}`` or ``{"bytes": ...}``, the other of the two None."""

#: Where a part of a message or a cell of a column holds its picture.
KEYS = ("image", "bytes", "path", "url", "base64", "image_url")
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # of EXIF: the tag, and its values where width and height change places


class PictureError(ValueError):
    """A picture that cannot be had.

    Args:
        what: is wrong with it.
        mend: what the user can do.
    """

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what)
        self.what, self.mend = what, mend


def reference(value: Any, folder: Path) -> Reference:
    """What a picture is found by later: paths stay paths, all else becomes the bytes of a file.

    Args:
        value: a path, ``file:`` or ``data:`` URL, bytes, a `PIL.Image.Image`, or a mapping that holds one of these.
        folder: where relative paths begin.

    Raises:
        PictureError: for anything else, a path with nothing there, or a URL that would have to be fetched.
    """
    if isinstance(value, dict) and (key := next((key for key in KEYS if value.get(key) is not None), None)):
        found = value[key]
        if key == "base64" and isinstance(found, str) and not found.startswith("data:"):
            return {"path": None, "bytes": _decoded(found)}
        return reference(found, folder)
    if isinstance(value, bytes | bytearray):
        return {"path": None, "bytes": bytes(value)}
    if isinstance(value, str) and value.startswith("data:"):
        return {"path": None, "bytes": _decoded(value.partition(",")[2])}
    if isinstance(value, str | Path):
        return {"path": _found(str(value), folder), "bytes": None}
    if hasattr(value, "save") and hasattr(value, "convert"):
        return {"path": None, "bytes": _encoded(value)}
    mend = "give a path, the bytes of a file, or a PIL image"
    raise PictureError(f"{type(value).__name__} is no picture", mend)


def size_of(picture: Reference, whole: bool = False) -> tuple[int, int]:
    """Width and height as it will be seen, from the head of its file.

    Args:
        picture: where it is found.
        whole: read all of it, to see that it can be.

    Raises:
        PictureError: if it is no picture.
    """
    from PIL import Image

    try:
        with _open(picture) as image:
            if whole:
                image.load()
            width, height = image.size
            return (height, width) if _orientation(image) in _TURNED else (width, height)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureError(f"{told(picture)} cannot be read as a picture: {error}", "mend the file") from error


def open_picture(picture: Reference) -> Image:
    """The picture in RGB, upright; where it is transparent, on white, as processors of transformers 5.21 do.

    Raises:
        DataError: if its file is no longer there, or broken.
    """
    from PIL import ImageOps

    try:
        with _open(picture) as image:
            turned = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
            return _in_rgb(turned)
    except (OSError, ValueError, SyntaxError) as error:
        what = f"{told(picture)} cannot be read any more: {error}"
        mend = "mend the file; a picture is read whenever it is needed"
        raise DataError(Problem(what, "a batch", mend)) from error


def _in_rgb(image: Image) -> Image:
    from PIL import Image

    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def told(picture: Reference) -> str:
    """The picture, for people."""
    return picture["path"] or f"a picture of {len(picture['bytes']):,} bytes"


def _open(picture: Reference) -> Any:
    from PIL import Image

    return Image.open(picture["path"] or io.BytesIO(picture["bytes"]))


def _orientation(image: Any) -> int:
    # A PNG without EXIF in its head would be decoded whole to look for it behind the picture.
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & {*image.info}:
        return 1
    return int(image.getexif().get(_ORIENTATION, 1))


def _encoded(image: Image) -> bytes:
    """A file of the picture as it is now, without losses."""
    copied, file = detached(image), io.BytesIO()
    copied.save(file, format="PNG" if copied.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else "TIFF")
    return file.getvalue()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:  # the latter for letters that are not ASCII
        raise PictureError(f"no valid base64: {error}", "correct it; a file has its path") from error


def _found(name: str, folder: Path) -> str:
    address = urlparse(name)
    if address.scheme in ("http", "https", "ftp", "s3", "gs", "hf"):
        mend = "download the pictures, and give their paths (see image_folder)"
        raise PictureError(f"{name} is a URL, and pictures are not fetched while training", mend)
    path = Path(unquote(address.path) if address.scheme == "file" else name)
    try:
        path = folder / path.expanduser()
        there = path.is_file()
    except (OSError, RuntimeError):  # a name that no file can have, and a home that nobody has
        there = False
    if not there:
        shown = str(path) if len(str(path)) <= 300 else f"{str(path)[:300]}..."
        mend = "correct the path, or set plugin vision, option image_folder"
        raise PictureError(f"there is no picture {shown!r}", mend)
    return str(path.absolute())
