"""Smooth random fields and soft shapes: the two brushes that the phantom is drawn with.

Points are float32 arrays of shape (3, N): world coordinates in mm, x to the right, y to the front, z up (MNI space).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter


def linear(volume: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Read volumes between their voxels: (C, X, Y, Z) at voxel positions (3, N) gives (C, N); edges go on outside.

    PyTorch's sampler reads all channels at once, two to three times faster than SciPy's.
    """
    last = np.array(volume.shape[1:], np.float32)[:, None] - 1
    grid = np.ascontiguousarray((index * (2 / last) - 1)[::-1].T, dtype=np.float32)  # it wants (z, y, x) in [-1, 1]
    with torch.inference_mode():
        found = torch.nn.functional.grid_sample(
            torch.from_numpy(volume)[None],
            torch.from_numpy(grid)[None, None, None],
            padding_mode="border",
            align_corners=True,
        )
    return found[0, :, 0, 0].numpy()


class SmoothField:
    """Random fields of zero mean and unit variance that vary over about ``length`` mm; periodic over ``n / 2`` lengths.

    A lattice of white noise, smoothed, and read between its nodes by linear interpolation: as smooth as a cubic zoom
    at a fraction of its cost, and defined at any point.
    """

    def __init__(self, rng: np.random.Generator, length: float, n: int = 32, channels: int = 1):
        white = rng.standard_normal((channels, n, n, n), dtype=np.float32)
        lattice = gaussian_filter(white, (0, 1.3, 1.3, 1.3), mode="wrap")
        lattice = (lattice - lattice.mean()) / lattice.std()
        self.lattice = np.pad(lattice, ((0, 0), (0, 1), (0, 1), (0, 1)), mode="wrap")
        self.n, self.spacing = n, np.float32(length / 2)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Values at points (3, N): float32 (N,), or (channels, N) with more than one channel."""
        index = points / self.spacing
        values = linear(self.lattice, index - self.n * np.floor(index / self.n))
        return values[0] if len(values) == 1 else values


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
