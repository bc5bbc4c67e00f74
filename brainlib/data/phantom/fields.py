"""Smooth random fields and soft shapes: the two brushes that the phantom is drawn with.

Points are float32 arrays of shape (3, N): world coordinates in mm, x to the right, y to the front, z up (MNI space).
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates


class SmoothField:
    """A random field of zero mean and unit variance that varies over about ``length`` mm; periodic over ``n/2`` lengths.

    A lattice of white noise, smoothed, and read between its nodes by linear interpolation: as smooth as a cubic zoom
    at a fraction of its cost, and defined at any point.
    """

    def __init__(self, rng: np.random.Generator, length: float, n: int = 32):
        lattice = gaussian_filter(rng.standard_normal((n, n, n), dtype=np.float32), 1.3, mode="wrap")
        self.lattice = (lattice - lattice.mean()) / lattice.std()
        self.spacing = np.float32(length / 2)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Values at points (3, N), float32 (N,)."""
        return map_coordinates(self.lattice, points / self.spacing, order=1, mode="grid-wrap", prefilter=False)


def soft(distance: np.ndarray, width: float = 1.2) -> np.ndarray:
    """Coverage of a region given the signed distance (mm) to it: 1 inside, 0 outside, a ramp of ``width`` between."""
    return np.clip(0.5 - distance / np.float32(width), 0, 1)


def ellipsoid(points: np.ndarray, center, radii) -> np.ndarray:
    """Approximate signed distance (mm) of points (3, N) to an ellipsoid; exact for a sphere."""
    radii = np.asarray(radii, np.float32)[:, None]
    scaled = (points - np.asarray(center, np.float32)[:, None]) / radii
    k = np.sqrt((scaled**2).sum(0)) + np.float32(1e-6)
    return k * (k - 1) / (np.sqrt(((scaled / radii) ** 2).sum(0)) + np.float32(1e-6))


def capsule(points: np.ndarray, start, end, radius: float) -> np.ndarray:
    """Signed distance (mm) of points (3, N) to a rod with round ends."""
    a, b = (np.asarray(v, np.float32)[:, None] for v in (start, end))
    along = np.clip(((points - a) * (b - a)).sum(0) / ((b - a) ** 2).sum(), 0, 1)
    return np.sqrt(((points - a - along * (b - a)) ** 2).sum(0)) - np.float32(radius)


def rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation matrix for three small angles (radians) about x, y and z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
