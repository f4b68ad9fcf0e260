"""Images as data holds them, and as references that batches carry: a path, or the bytes of a file."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from sftkit.api import DataError, Problem, detach_image

if TYPE_CHECKING:
    from PIL.Image import Image

Reference = dict[str, Any]
"""``{"path": ..., "bytes": ...}``, one of which is None."""

#: Keys under which a part of a message or a cell of a column holds its image.
KEYS = ("image", "bytes", "path", "url", "base64", "image_url")
_ORIENTATION, _ROTATED = 0x0112, (5, 6, 7, 8)  # of EXIF: the tag, and its values that swap width and height


class ImageError(ValueError):
    """An image that cannot be used.

    Args:
        what: what is wrong with it.
        fix: what the user can do.
    """

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.fix = what, fix


def reference(value: Any, folder: Path) -> Reference:
    """How an image is found later: paths stay paths, everything else becomes the bytes of a file.

    Args:
        value: a path, ``file:`` or ``data:`` URL, bytes, a `PIL.Image.Image`, or a mapping that holds one of these.
        folder: the folder to which relative paths refer.

    Raises:
        ImageError: for any other value, a path that does not exist, or a URL that would have to be downloaded.
    """
    if isinstance(value, dict) and (key := next((key for key in KEYS if value.get(key) is not None), None)):
        found = value[key]
        if key == "base64" and isinstance(found, str) and not found.startswith("data:"):
            return {"path": None, "bytes": _decode(found)}
        return reference(found, folder)
    if isinstance(value, bytes | bytearray):
        return {"path": None, "bytes": bytes(value)}
    if isinstance(value, str) and value.startswith("data:"):
        return {"path": None, "bytes": _decode(value.partition(",")[2])}
    if isinstance(value, str | Path):
        return {"path": _find(str(value), folder), "bytes": None}
    if hasattr(value, "save") and hasattr(value, "convert"):
        return {"path": None, "bytes": _encode(value)}
    fix = "use a path, the bytes of a file, or a PIL image"
    raise ImageError(f"{type(value).__name__} is not an image", fix)


def size_of(image: Reference, whole: bool = False) -> tuple[int, int]:
    """Width and height of the upright image, from the header of its file.

    Args:
        image: where to find it.
        whole: decode all of it, to check that this works.

    Raises:
        ImageError: if it is not a readable image.
    """
    from PIL import Image

    try:
        with _open(image) as opened:
            if whole:
                opened.load()
            width, height = opened.size
            return (height, width) if _orientation(opened) in _ROTATED else (width, height)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{describe(image)} cannot be read as an image: {error}", "repair the file") from error


def open_image(image: Reference) -> Image:
    """The image upright and in RGB; transparent areas become white, as in most image processors.

    Raises:
        DataError: if its file is missing or broken.
    """
    from PIL import ImageOps

    try:
        with _open(image) as opened:
            upright = ImageOps.exif_transpose(opened) if _orientation(opened) != 1 else opened
            return _in_rgb(upright)
    except (OSError, ValueError, SyntaxError) as error:
        what = f"{describe(image)} can no longer be read: {error}"
        fix = "restore the file; images are read again for every batch"
        raise DataError(Problem(what, "a batch", fix)) from error


def _in_rgb(image: Image) -> Image:
    from PIL import Image

    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    background = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")


def describe(image: Reference) -> str:
    """The image in words."""
    return image["path"] or f"an image of {len(image['bytes']):,} bytes"


def _open(image: Reference) -> Any:
    from PIL import Image

    return Image.open(image["path"] or io.BytesIO(image["bytes"]))


def _orientation(image: Any) -> int:
    # Pillow looks for EXIF after the pixels of a PNG too, which decodes the whole image.
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & {*image.info}:
        return 1
    return int(image.getexif().get(_ORIENTATION, 1))


def _encode(image: Image) -> bytes:
    """The bytes of a lossless file of the image in its current state."""
    copied, file = detach_image(image), io.BytesIO()
    copied.save(file, format="PNG" if copied.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else "TIFF")
    return file.getvalue()


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:  # the latter for letters that are not ASCII
        raise ImageError(f"not valid base64: {error}", "correct it, or use a path") from error


def _find(name: str, folder: Path) -> str:
    address = urlparse(name)
    if address.scheme in ("http", "https", "ftp", "s3", "gs", "hf"):
        fix = "download the images, and use their paths (see image_folder)"
        raise ImageError(f"{name} is a URL; images are not downloaded during a run", fix)
    path = Path(unquote(address.path) if address.scheme == "file" else name)
    try:
        path = folder / path.expanduser()
        exists = path.is_file()
    except (OSError, RuntimeError):  # an impossible file name, or an unknown user's home
        exists = False
    if not exists:
        shown = str(path) if len(str(path)) <= 300 else f"{str(path)[:300]}..."
        fix = "correct the path, or set option image_folder of plugin vision"
        raise ImageError(f"there is no image {shown!r}", fix)
    return str(path.absolute())
