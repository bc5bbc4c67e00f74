"""Arrays and matplotlib figures as compressed pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from brainlib.files import DataError
from brainlib.plot import use_style

MIN_ALT = 40  # characters of an alt text; less does not describe a picture


def to_image(picture: np.ndarray | Figure, dpi: float | None = None, *, tight: bool = False) -> Image.Image:
    """A picture as an RGB image; a `Figure` is drawn on white, at ``dpi`` or else its own dots per inch.

    Args:
        picture: uint8 ``(H, W)`` or ``(H, W, 3)``, or a matplotlib `Figure`.
        tight: cut a `Figure` to what is drawn, as a notebook does; its size then depends on what that is.

    Raises:
        DataError: anything else.
    """
    if isinstance(picture, Figure):
        drawn = io.BytesIO()
        options = {"facecolor": "white", "bbox_inches": "tight" if tight else None, "pil_kwargs": {"compress_level": 1}}
        picture.savefig(drawn, format="png", dpi=dpi or picture.dpi, **options)
        return Image.open(drawn).convert("RGB")
    array = np.asarray(picture)
    if array.dtype != np.uint8:
        raise DataError(
            f"a picture is a matplotlib Figure or an array of uint8, not {_kind(picture)}: "
            "scale the values to 0 to 255 and convert them, or return the Figure"
        )
    if not (array.ndim == 2 or array.ndim == 3 and array.shape[2] == 3) or array.size == 0:
        raise DataError(f"a picture has the shape (H, W) or (H, W, 3), not {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def draw_image(draw: Callable[..., np.ndarray | Figure], *values: Any) -> Image.Image:
    """``draw(*values)`` as an image, in the style of the course; every figure that it opens is closed."""
    # A kernel's first figure loads the inline backend, which turns interactive mode on. That must not happen inside
    # rc_context, which would turn it off again: the figures of later cells would not be shown.
    plt.draw_if_interactive()
    before = set(plt.get_fignums())
    with plt.rc_context():
        use_style()
        try:
            picture = draw(*values)
            image = to_image(picture)
            if isinstance(picture, Figure):
                plt.close(picture)  # one that was there before would be shown below the cell
            return image
        finally:
            for number in set(plt.get_fignums()) - before:
                plt.close(number)


def to_webp(image: Image.Image, quality: int = 80) -> bytes:
    """``image`` as a lossy WebP file; ``quality`` from 0 to 100."""
    encoded = io.BytesIO()
    image.save(encoded, "WEBP", quality=quality, method=6)
    return encoded.getvalue()


def to_page(image: Image.Image, max_bytes: int) -> tuple[str, bytes]:
    """``image`` as a file of at most ``max_bytes`` and its MIME type: PNG if that is small enough, else JPEG.

    PNG with 256 colors keeps lines and letters sharp; pictures of brains are noise to it, and JPEG is made for them.

    Raises:
        DataError: even the coarsest JPEG is larger.
    """
    encoded = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(encoded, "PNG", optimize=True)
    if encoded.tell() <= max_bytes:
        return "image/png", encoded.getvalue()
    for quality in (85, 75, 60, 45, 30, 15):
        encoded = io.BytesIO()
        # Without optimize: Pillow's buffer for it is too small for noise in full color, and it then stops half-way.
        image.save(encoded, "JPEG", quality=quality, subsampling=0)
        if encoded.tell() <= max_bytes:
            return "image/jpeg", encoded.getvalue()
    raise DataError(
        f"a picture of {image.width} × {image.height} pixels has {encoded.tell() / 1e3:.0f} kB as the coarsest JPEG, "
        f"more than {max_bytes / 1e3:.0f} kB: make it smaller, or show less in it"
    )


def data_uri(content: bytes, mime: str = "image/webp") -> str:
    """The address by which a page holds a file in itself."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def _kind(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
