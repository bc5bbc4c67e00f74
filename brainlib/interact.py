"""Controls of a chapter: a picture under sliders, and a short animation.

A slider control has two faces. Where Python runs (Jupyter, Colab) its sliders are those of ipywidgets, and a picture is
drawn when it is asked for. In a recorded run it is plain HTML that holds all its pictures and works without Python.
``BRAINLIB_CONTROLS`` (``static`` or ``live``) chooses; without it, a kernel that has ipywidgets means live.
"""

from __future__ import annotations

import importlib.util
import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from html import escape
from itertools import product
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from brainlib import controls
from brainlib.files import DataError
from brainlib.pictures import MIN_ALT, data_uri, draw_image, to_webp

MAX_AXES = 3
CACHED_FRAMES = 200  # of a live control
MIN_WIDTH = 320  # pixels of the page: a smaller picture is shown enlarged
# (quality, scale) of an animation, tried in turn until it is small enough.
ANIMATION_STEPS = ((80, 1.0), (65, 1.0), (50, 1.0), (60, 0.8), (50, 0.65), (50, 0.5))


def scrub(
    draw: Callable[..., np.ndarray | Figure],
    axes: Mapping[str, Sequence[Any]],
    *,
    alt: str,
    caption: str = "",
    start: int | Sequence[int] | None = None,
    width: int | None = None,
    quality: int = 80,
    max_bytes: int = 900_000,
    name: str | None = None,
) -> Scrub:
    """A picture and, below it, a slider for each of the quantities that it depends on.

    Args:
        draw: called with one value of each axis, in order; returns a uint8 array ``(H, W)`` or ``(H, W, 3)``, or a
            matplotlib `Figure`. All pictures must have one size.
        axes: the label of each of one to three axes, such as ``"TR (ms)"``, and its values (two or more).
        alt: what the picture shows and what the sliders change in it, for readers who do not see it (40 characters or
            more).
        caption: the line below it, plain text. Every control of a chapter has one.
        start: the position (not the value) of each axis at first. Default: the middle.
        width: on the page, in pixels. Default: that of the picture, and at least 320.
        quality: of the WebP pictures, 0 to 100.
        max_bytes: limit for the HTML of a recorded run, which holds every combination of values.
        name: id of the figure in the page, for links. Default: made from the content.

    Raises:
        DataError: an argument that cannot work, pictures of several sizes, or more than ``max_bytes``.
    """
    control = Scrub(draw, axes, alt, caption, start, width, quality, max_bytes, name)
    # Here, since an error in `draw` stops the cell now, but not while IPython displays a value.
    _ = control.frame(*control.start) if is_live() else control.html
    return control


def animate(
    frames: Iterable[np.ndarray | Figure],
    *,
    alt: str,
    caption: str = "",
    fps: float = 12,
    width: int | None = None,
    still: int | None = None,
    max_bytes: int = 600_000,
    name: str | None = None,
) -> Animation:
    """Pictures that follow each other, over and over; readers who ask their system for less motion see one of them.

    Args:
        frames: two or more pictures of one size, as `scrub`'s ``draw`` returns them; from a generator, since each
            `Figure` is closed before the next is made.
        alt: what moves, and how (40 characters or more).
        caption: the line below it, plain text. Every animation of a chapter has one.
        fps: pictures a second, up to 50.
        width: on the page, in pixels. Default: that of the pictures, and at least 320.
        still: position of the picture that is shown while nothing moves. Default: the middle.
        max_bytes: limit for the HTML; quality, then size are lowered as far as that needs.
        name: id of the figure in the page, for links. Default: made from the content.

    Raises:
        DataError: an argument that cannot work, pictures of several sizes, or more than ``max_bytes`` at the lowest
            quality.
    """
    _check_alt("animate", alt)
    if not 0 < fps <= 50:
        raise DataError(f"animate: fps must be above 0 and at most 50, not {fps}")
    supply, pictures = iter(frames), []
    while True:
        try:
            pictures.append(draw_image(lambda: next(supply)))  # a generator draws here
        except StopIteration:
            break
        _check_size("animate", f"position {len(pictures) - 1}", pictures[-1].size, pictures[0].size)
    if len(pictures) < 2:
        raise DataError(f"animate: {len(pictures)} pictures are given; an animation has two or more")
    middle = len(pictures) // 2 if still is None else still
    if not 0 <= middle < len(pictures):
        raise DataError(f"animate: still={still} is no position of a picture; they are 0 to {len(pictures) - 1}")
    look = {"width": width or _width(pictures[0]), "name": name}
    for quality, scale in ANIMATION_STEPS:
        scaled = [_scale(picture, scale) for picture in pictures]
        moving, resting = data_uri(_encode(scaled, fps, quality)), data_uri(to_webp(scaled[middle], quality))
        html = controls.animation(moving, resting, alt, caption.strip(), **look)
        if (size := len(html.encode())) <= max_bytes:
            return Animation(html, len(pictures), fps)
    raise DataError(
        f"animate: {len(pictures)} pictures need {_kilobytes(size)} even at quality {quality} and {scale:.0%} of their "
        f"size, more than {_kilobytes(max_bytes)}: use fewer or smaller pictures"
    )


class Scrub:
    """What `scrub` returns; shown as the last value of a cell."""

    def __init__(
        self,
        draw: Callable[..., np.ndarray | Figure],
        axes: Mapping[str, Sequence[Any]],
        alt: str,
        caption: str,
        start: int | Sequence[int] | None,
        width: int | None,
        quality: int,
        max_bytes: int,
        name: str | None,
    ) -> None:
        _check_alt("scrub", alt)
        if not isinstance(axes, Mapping) or not 1 <= len(axes) <= MAX_AXES:
            raise DataError(f"scrub: axes must map 1 to {MAX_AXES} labels to the values of their sliders")
        self.axes = {str(label): list(values) for label, values in axes.items()}
        for label, values in self.axes.items():
            if len(values) < 2:
                raise DataError(f"scrub: a slider needs two or more values, but {label!r} has {len(values)}")
        self.texts = {label: [_text(value) for value in values] for label, values in self.axes.items()}
        self.start = self._positions(start)
        self.draw, self.alt, self.caption, self.width = draw, alt, caption.strip(), width
        self.quality, self.max_bytes, self.name = quality, max_bytes, name
        self._frames: dict[tuple[int, ...], str] = {}
        self._size: tuple[int, int] | None = None

    def __repr__(self) -> str:
        counts = ", ".join(f"{label}: {len(values)} values" for label, values in self.axes.items())
        return f"Scrub({counts})"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": repr(self)}

    def _ipython_display_(self) -> None:
        if not is_live():
            raise NotImplementedError  # IPython then asks for the bundle
        from IPython.display import display

        display(self.widget())

    def frame(self, *positions: int) -> str:
        """The picture at these positions of the axes, as a data URI; the last ones drawn are kept."""
        if positions not in self._frames:
            if len(self._frames) >= CACHED_FRAMES:
                del self._frames[next(iter(self._frames))]
            self._frames[positions] = self._draw(positions)
        return self._frames[positions]

    @cached_property
    def html(self) -> str:
        """The control with all its pictures, as HTML that needs nothing else."""
        count = math.prod(map(len, self.axes.values()))
        frames: list[str] = []
        size = 0
        for positions in product(*(range(len(values)) for values in self.axes.values())):
            frames.append(self._draw(positions))
            size += len(frames[-1])
            if size > self.max_bytes:  # no need to draw the others
                raise self._too_large(count, size * count / len(frames))
        look = {"width": self.width, "name": self.name}
        html = controls.scrub(frames, self.texts, self.start, self.alt, self.caption, **look)
        if (size := len(html.encode())) > self.max_bytes:
            raise self._too_large(count, size)
        return html

    def widget(self) -> Any:
        """The live control, an ipywidgets ``VBox``: picture, sliders, caption."""
        import ipywidgets

        picture = ipywidgets.HTML()
        sliders = [
            ipywidgets.SelectionSlider(
                options=[(text, i) for i, text in enumerate(texts)],
                value=i,
                description=label,
                style={"description_width": "initial"},
                layout={"width": "auto", "max_width": "40rem"},
            )
            for (label, texts), i in zip(self.texts.items(), self.start, strict=True)
        ]

        def show(change: Any = None) -> None:
            positions = tuple(slider.value for slider in sliders)
            try:
                picture.value = controls.picture(self.frame(*positions), self.alt, self.width)
            except Exception as error:  # ipywidgets would hide it in a log, and the old picture would stay
                picture.value = f"<p>No picture at {escape(self._where(positions))}: {escape(str(error))}</p>"

        for slider in sliders:
            slider.observe(show, names="value")
        show()
        caption = [ipywidgets.HTML(f"<p>{escape(self.caption)}</p>")] if self.caption else []
        return ipywidgets.VBox([picture, *sliders, *caption])

    def _draw(self, positions: Sequence[int]) -> str:
        image = draw_image(self.draw, *(axis[i] for axis, i in zip(self.axes.values(), positions, strict=True)))
        if self._size is None:
            self._size, self.width = image.size, self.width or _width(image)
        _check_size("scrub", self._where(positions), image.size, self._size)
        return data_uri(to_webp(image, self.quality))

    def _positions(self, start: int | Sequence[int] | None) -> tuple[int, ...]:
        counts = [len(values) for values in self.axes.values()]
        if start is None:
            return tuple(count // 2 for count in counts)
        positions = (start,) if isinstance(start, int | np.integer) else tuple(start)
        if len(positions) != len(counts):
            raise DataError(f"scrub: start has {len(positions)} positions for {len(counts)} axes")
        for label, count, i in zip(self.axes, counts, positions, strict=True):
            if not isinstance(i, int | np.integer) or not 0 <= i < count:
                raise DataError(f"scrub: start {i!r} is no position of {label!r}; they are 0 to {count - 1}")
        return tuple(int(i) for i in positions)

    def _where(self, positions: Sequence[int]) -> str:
        pairs = zip(self.texts.items(), positions, strict=True)
        return ", ".join(f"{label} = {texts[i]}" for (label, texts), i in pairs)

    def _too_large(self, count: int, size: float) -> DataError:
        axes = " x ".join(f"{len(values)} of {label}" for label, values in self.axes.items())
        return DataError(
            f"scrub: {count} pictures ({axes}) need about {_kilobytes(size)}, more than {_kilobytes(self.max_bytes)}: "
            f"use fewer values, a smaller picture, or a lower quality (now {self.quality})"
        )


class Animation:
    """What `animate` returns; shown as the last value of a cell."""

    def __init__(self, html: str, count: int, fps: float) -> None:
        self.html, self.count, self.fps = html, count, fps

    def __repr__(self) -> str:
        return f"Animation({self.count} pictures, {self.fps:g} a second)"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": repr(self)}


def is_live() -> bool:
    """Whether sliders are those of ipywidgets: as ``BRAINLIB_CONTROLS`` says, else in a kernel that has them."""
    configured = os.environ.get("BRAINLIB_CONTROLS", "")
    if configured not in ("", "static", "live"):
        raise DataError(f"BRAINLIB_CONTROLS is {configured!r}: set it to static or live, or remove it")
    if configured:
        return configured == "live"
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel") and importlib.util.find_spec("ipywidgets") is not None


def _text(value: Any) -> str:
    """A value as its slider shows it."""
    return f"{value:g}" if isinstance(value, float | np.floating) else re.sub(r"\s+", " ", str(value))


def _width(image: Image.Image) -> int | None:
    return MIN_WIDTH if image.width < MIN_WIDTH else None


def _encode(pictures: Sequence[Image.Image], fps: float, quality: int) -> bytes:
    """An animated WebP file that repeats for ever."""
    encoded = io.BytesIO()
    options = {"duration": round(1000 / fps), "loop": 0, "quality": quality, "method": 4, "minimize_size": True}
    pictures[0].save(encoded, "WEBP", save_all=True, append_images=pictures[1:], **options)
    return encoded.getvalue()


def _scale(picture: Image.Image, scale: float) -> Image.Image:
    if scale == 1:
        return picture
    return picture.resize([max(1, round(scale * side)) for side in picture.size], Image.Resampling.LANCZOS)


def _kilobytes(size: float) -> str:
    return f"{size / 1e3:.0f} kB"


def _check_alt(function: str, alt: str) -> None:
    if (length := len(alt.strip())) < MIN_ALT:
        raise DataError(
            f"{function}: alt has {length} characters; say in {MIN_ALT} or more what the picture shows and what "
            "changes, for readers who do not see it"
        )


def _check_size(function: str, where: str, size: tuple[int, int], first: tuple[int, int]) -> None:
    if size != first:
        raise DataError(
            f"{function}: the picture at {where} has {size[0]} x {size[1]} pixels, the first {first[0]} x {first[1]}; "
            "all must have one size"
        )
