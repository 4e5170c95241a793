"""One image file: what its header says, and its pixels in a given format."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from twofold.data.images import covering

MAX_PIXELS = 2**26
"""Larger pictures (8192 × 8192) are refused: a small file can declare a picture that no memory holds."""

_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_ORIENTATION = 0x0112
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    EOFError,
    struct.error,
    Warning,
)
"""What Pillow's decoders raise on damaged files (warnings, where the caller has made them errors)."""


class Unreadable(Exception):  # noqa: N818 - a fact about a file, caught by the folder that knows its name
    """A picture file that cannot be used, with the reason."""


@dataclass(frozen=True)
class Seen:
    """What a picture's header says, as it is to be shown (after EXIF rotation)."""

    height: int
    width: int
    kind: str
    """"grey", "grey16", "color" or "alpha"."""
    palette: tuple[tuple[int, int, int], ...] | None = None
    """The colours of a PNG whose pixels are numbers of them."""


@dataclass(frozen=True)
class PixelFormat:
    """What pictures are brought to."""

    channels: int
    height: int
    width: int
    sixteen_bit: bool = False
    half: str = ""
    """"left" or "right": that half of the file's picture only."""
    nearest: bool = False
    """Resize by taking the nearest pixel: label maps have no colours between two classes."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width


def inspect(path: Path | BinaryIO) -> Seen:
    """What the header says; the pixels are not decoded. Raises `Unreadable`."""
    with _opened(path) as image:
        try:
            width, height = image.size
            if image.format == "TIFF":
                # Pillow reports a TIFF's size as it is to be shown, and turns its pixels itself.
                turned = False
            else:
                turned = _orientation(image) >= 5
            return Seen(width if turned else height, height if turned else width, _kind(image), _palette(image))
        except _DAMAGE as error:
            raise Unreadable(_reason(error)) from None


def decode(path: Path | BinaryIO, pixel_format: PixelFormat) -> np.ndarray:
    """The pixels, (channels, height, width) uint8, or int32 for 16 bits. Raises `Unreadable`."""
    with _opened(path) as image:
        try:
            image.load()
        except (*_DAMAGE, MemoryError) as error:
            raise Unreadable(_reason(error)) from None
        image = _half(_upright(image), pixel_format.half)
        pixels = _pixels_16(image, pixel_format) if pixel_format.sixteen_bit else _pixels_8(image, pixel_format)
    if pixels.shape != pixel_format.shape:
        raise Unreadable(f"its pixels are {pixels.shape[1]}×{pixels.shape[2]}, not what its header says")
    return pixels


def _opened(path: Path | BinaryIO) -> Any:
    from PIL import Image

    try:
        image = Image.open(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unreadable(f"more than {MAX_PIXELS} pixels") from None
    except Image.UnidentifiedImageError:
        raise Unreadable("not an image, or damaged") from None
    except _DAMAGE as error:
        raise Unreadable(_reason(error)) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise Unreadable(f"{height}×{width} is more than {MAX_PIXELS} pixels")
    return image


def _kind(image: Any) -> str:
    if image.mode in _SIXTEEN_BIT_MODES or (image.mode == "I" and image.format == "PNG"):
        return "grey16"
    if image.mode in ("I", "F"):
        raise Unreadable("32-bit pixels; save the images as a .npy file")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        return "alpha"
    return "grey" if image.mode in ("1", "L") else "color"


def _palette(image: Any) -> tuple[tuple[int, int, int], ...] | None:
    """The colours by number; what fills a palette's end by repeating one colour is left out."""
    if image.format != "PNG" or image.mode != "P" or "transparency" in image.info:
        return None
    values = image.getpalette()
    if not values:
        return None
    colours = [(int(r), int(g), int(b)) for r, g, b in zip(values[::3], values[1::3], values[2::3], strict=True)]
    while len(colours) > 1 and colours[-1] == colours[-2]:
        colours.pop()
    return tuple(colours)


def _half(image: Any, half: str) -> Any:
    if not half:
        return image
    width, height = image.size
    if width % 2:
        raise Unreadable(f"{width} pixels wide: not two pictures of one width side by side")
    return image.crop((0, 0, width // 2, height) if half == "left" else (width // 2, 0, width, height))


def _orientation(image: Any) -> int:
    # For a PNG without EXIF at its start, asking would decode the whole picture.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _DAMAGE:
        # Damaged EXIF says nothing about the orientation; the picture itself may be whole.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(image: Any) -> Any:
    from PIL import Image

    turn = Image.Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    if image.format == "TIFF":
        return image
    orientation = _orientation(image)
    return image.transpose(turns[orientation]) if orientation in turns else image


def _pixels_8(image: Any, pixel_format: PixelFormat) -> np.ndarray:
    from PIL import Image

    if image.mode in _SIXTEEN_BIT_MODES or image.mode == "I":
        image = Image.fromarray(((_values_16(image).astype(np.int64) + 128) // 257).astype(np.uint8))
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        if pixel_format.channels < 4:
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[pixel_format.channels]
    if image.mode != mode:
        image = image.convert(mode)
    # A copy: what Pillow shows of its memory is read-only, and torch warns of that.
    array = np.array(_resized(image, pixel_format))
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _pixels_16(image: Any, pixel_format: PixelFormat) -> np.ndarray:
    from PIL import Image

    if image.mode in _SIXTEEN_BIT_MODES or image.mode == "I":
        values = _values_16(image)
    else:
        whole = PixelFormat(1, image.size[1], image.size[0], nearest=pixel_format.nearest)
        values = _pixels_8(image, whole)[0].astype(np.int32) * 257
    if values.shape == (pixel_format.height, pixel_format.width):
        return values[None]
    # As floats: some versions of Pillow resize 16-bit modes by nearest neighbour only.
    resized = np.asarray(_resized(Image.fromarray(values.astype(np.float32)), pixel_format))
    return np.rint(resized).clip(0, 65535).astype(np.int32)[None]


def _values_16(image: Any) -> np.ndarray:
    values = np.asarray(image).astype(np.int32)
    if values.min() < 0 or values.max() > 65535:
        raise Unreadable("values outside 0 to 65535")
    return values


def _resized(image: Any, pixel_format: PixelFormat) -> Any:
    """To the smallest size that covers the format at the picture's own aspect, then its centre; bicubic, or nearest
    pixel."""
    from PIL import Image

    if image.size == (pixel_format.width, pixel_format.height):
        return image
    height, width = covering(image.size[1], image.size[0], (pixel_format.height, pixel_format.width))
    top, left = (height - pixel_format.height) // 2, (width - pixel_format.width) // 2
    how = Image.Resampling.NEAREST if pixel_format.nearest else Image.Resampling.BICUBIC
    image = image.resize((width, height), how)
    return image.crop((left, top, left + pixel_format.width, top + pixel_format.height))


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
