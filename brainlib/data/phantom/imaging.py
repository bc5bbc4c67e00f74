"""From a person to pictures: tissues at the points of a slice, their signal, shading, texture and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .anatomy import Head, Layers, Place
from .fields import SmoothField
from .signal import SEQUENCES, TISSUES, relative_signals, rician
from .tumors import Tumor

#: For each plane: the axis across it, then the axes that run down and to the right in the picture, with their signs.
#: Radiological view: the patient's right is on the left of the picture.
PLANES = {"axial": (2, (1, -1), (0, -1)), "coronal": (1, (2, -1), (0, -1)), "sagittal": (0, (2, -1), (1, -1))}
#: The point (mm) on which a picture is centered.
MIDDLE = np.array([0.0, -12.0, -10.0])


@dataclass(frozen=True)
class Site:
    """One hospital: its noise (relative to white matter), and how strong and how smooth its coil shading is."""

    name: str
    noise: float
    shading: float
    shading_mm: float

    @classmethod
    def draw(cls, number: int, rng: np.random.Generator) -> Site:
        """Noise about 2 % of white matter, shading about 10 %."""
        return cls(f"S{number}", rng.uniform(0.012, 0.035), rng.uniform(0.06, 0.14), rng.uniform(140, 220))


def slice_points(plane: str, position: float, size: int, field: float, shift=(0.0, 0.0)) -> np.ndarray:
    """Points (3, size * size) in mm of a square slice, row by row.

    Args:
        plane: axial, coronal or sagittal.
        position: mm along the axis across the plane.
        size, field: side of the square in pixels and in mm.
        shift: offset (down, right) of the center in mm.
    """
    across, (down, down_sign), (right, right_sign) = PLANES[plane]
    steps = (np.arange(size) - (size - 1) / 2) * (field / size)
    points = np.empty((3, size, size), np.float32)
    points[across] = position
    points[down] = MIDDLE[down] + down_sign * (steps + shift[0])[:, None]
    points[right] = MIDDLE[right] + right_sign * (steps + shift[1])[None, :]
    return points.reshape(3, -1)


def compose(layers: Layers, values: dict[str, np.ndarray], size: int) -> np.ndarray:
    """Paint layers one over the other: (K, size), where ``values`` gives K numbers (signals, say) for each tissue.

    With one-hot rows as values the result is the fraction of each tissue.
    """
    channels = len(next(iter(values.values())))
    canvas = np.zeros((channels, size), np.float32)
    for name, cover in layers:
        canvas += cover * (np.asarray(values[name], np.float32)[:, None] - canvas)
    return canvas


class Scan:
    """One examination of one person: the head, the tumor (or none), the site, and one contrast of the agent.

    Args:
        head, tumor, site: what is imaged, and where.
        rng: random numbers of the examination (shading, dose).
        sequences: names in :data:`SEQUENCES`, the channels of every picture.
    """

    def __init__(self, head: Head, tumor: Tumor | None, site: Site, rng: np.random.Generator, sequences=("t1c",)):
        self.head, self.tumor, self.site = head, tumor, site
        self.shade = SmoothField(rng, site.shading_mm, 16)
        uptake = dict(tumor.uptake) if tumor else {}
        for name in ("pituitary gland", "blood", "mucosa"):
            uptake[name] = TISSUES[name].gadolinium * rng.uniform(0.3, 1.0)
        tables = [relative_signals(SEQUENCES[name], uptake) for name in sequences]
        self.signals = {tissue: np.array([table[tissue] for table in tables]) for tissue in TISSUES}
        self.noise = site.noise

    def tissues(self, place: Place, *, head: bool = True) -> tuple[Layers, Layers]:
        """Layers of the whole picture, and those of the tumor alone (empty without one)."""
        gland = self.tumor is None or "adenoma" not in self.tumor.uptake
        lesion = self.tumor.layers(place) if self.tumor else []
        return self.head.layers(place, head=head, gland=gland) + lesion, lesion

    def picture(self, layers: Layers, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Signals (K, N), white matter about 1, with texture (5 %), coil shading and Rician noise."""
        ideal = compose(layers, self.signals, points.shape[1])
        grain = 1 + np.float32(0.05) * self.head.texture(points)
        shade = np.exp(np.float32(self.site.shading / 2) * self.shade(points))
        return rician(ideal * grain * shade, self.noise, rng)

    def slice(
        self, plane: str, position: float, size: int, field: float, shift, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """One slice with the head around the brain: picture (K, size, size), and coverage (size, size) of the tumor."""
        points = slice_points(plane, position, size, field, shift)
        place = self.head.place(points, self.tumor)
        near = place.skin < 2  # the rest is air
        layers, lesion = self.tissues(place.at(near))
        full = [(name, _spread(cover, near)) for name, cover in layers]
        picture = self.picture(full, points, rng).reshape(-1, size, size)
        core = _spread(self.tumor.core(lesion), near) if lesion else np.zeros(near.shape, np.float32)
        return picture, core.reshape(size, size)


def _spread(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Put the values of the masked points back among all points."""
    full = np.zeros(mask.shape, np.float32)
    full[mask] = values
    return full


def to_bytes(picture: np.ndarray, brightness: float) -> np.ndarray:
    """A display window, as an export does it: the 99.5th percentile of the picture becomes ``brightness`` * 255."""
    top = np.percentile(picture, 99.5)
    return np.clip(picture * (255 * brightness / top), 0, 255).astype(np.uint8)
