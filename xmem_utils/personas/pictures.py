"""A user's pictures, as 8-bit RGB: what has a right conversion is converted, everything else is refused."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MOST_PIXELS = 64_000_000
LEAST_SIDE = 8  # px
MOST_ASPECT = 10  # longer side over shorter side
BACKGROUND = "white"  # what shows through where a picture is transparent
TO_RGB = ("1", "L", "P", "RGB", "CMYK", "YCbCr")
GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N")
BITS, PHOTOMETRIC = 258, 262  # tags of TIFF


def read_picture(path: Path) -> tuple[bytes, Image.Image]:
    """The bytes of a picture file, as the dataset holds it, and its RGB pixels.

    Both are turned as EXIF says. 8-bit RGB files are kept as they are; others become PNG: laid on white where they are
    transparent, scaled from 16-bit grey. Colour profiles are not applied. Raises ValueError, with the second half of a
    sentence, for what cannot be read or has no right conversion.
    """
    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            image = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"cannot be read: it is none of {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"has more than {MOST_PIXELS:,} pixels; make it smaller") from error
    except Exception as error:  # decoders raise whatever a broken file makes them raise
        raise ValueError("cannot be read: it is broken") from error
    with image:
        _check_size(*image.size)
        try:
            # the further pictures of a phone's JPEG (MPO) are depth or brightness of the first one
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            tags = dict(getattr(image, "tag_v2", {}))
            image.load()
            upright = ImageOps.exif_transpose(image)
        except Exception as error:  # as above
            raise ValueError("cannot be read: it is broken or cut off") from error
        if frames > 1:
            raise ValueError(f"has {frames} frames; save the one that is meant as a picture of its own")
        rgb = _rgb(upright, tags)
        if rgb is upright:  # `datasets` turns it too when it is shown
            return path.read_bytes(), rgb
    rgb.info.clear()  # a profile or transparent colour of the file as it was
    stream = io.BytesIO()
    rgb.save(stream, "png", compress_level=1)  # large photographs take seconds each
    return stream.getvalue(), rgb


def _check_size(width: int, height: int) -> None:
    """Before anything is decoded."""
    if width * height > MOST_PIXELS:
        raise ValueError(f"has {width} x {height} pixels, more than {MOST_PIXELS:,}; make it smaller")
    if min(width, height) < LEAST_SIDE:
        raise ValueError(f"has {width} x {height} pixels; expected at least {LEAST_SIDE} a side")
    if max(width, height) > MOST_ASPECT * min(width, height):
        raise ValueError(
            f"has {width} x {height} pixels; expected a longer side of at most {MOST_ASPECT} times the shorter; crop it"
        )


def _rgb(image: Image.Image, tags: dict[int, object]) -> Image.Image:
    """The picture in RGB; `tags` are those of a TIFF."""
    if image.has_transparency_data and image.mode not in GREY_16:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, BACKGROUND), layer).convert("RGB")
    if image.mode in TO_RGB:
        return image if image.mode == "RGB" else image.convert("RGB")
    # Pillow leaves 12 bits, and white at zero, as they are
    plain = tags.get(BITS, (16,)) == (16,) and tags.get(PHOTOMETRIC, 1) == 1 and not image.has_transparency_data
    if image.mode in GREY_16 and plain:
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257  # 65535 / 255 = 257, rounded
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    raise ValueError(f"is of kind {image.mode!r}, which has no plain conversion; save it with 8 bits a channel")
