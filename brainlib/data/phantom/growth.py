"""Glioma growth by the Fisher-Kolmogorov equation: cells spread (faster along white matter) and divide.

du/dt = div(D grad u) + rho u (1 - u), u being the cell density relative to what the tissue can carry. In a uniform
tissue it runs outward as a front of speed 2 sqrt(D rho). Sources: Swanson, Alvord and Murray, Cell Proliferation
33:317, 2000 (D ten times larger in white matter); Jbabdi et al., Magn Reson Med 54:616, 2005 (growth on imaged
anatomy).
"""

from __future__ import annotations

import numpy as np


def time_step(diffusivity: float, rho: float, spacing: float) -> float:
    """A stable explicit step in days: 0.9 h²/(6 D) for diffusion, 0.3/rho for division, whichever is shorter."""
    return min(0.9 * spacing**2 / (6 * diffusivity), 0.3 / rho)


def step(u: np.ndarray, faces: list[np.ndarray], rho: float, spacing: float, dt: float) -> np.ndarray:
    """One explicit Euler step of ``dt`` days; ``faces`` is what :func:`face_diffusivity` returns."""
    change = rho * u * (1 - u)
    for axis, diffusivity in enumerate(faces):
        flux = diffusivity * np.diff(u, axis=axis) / np.float32(spacing**2)
        lower = [slice(None)] * u.ndim
        upper = list(lower)
        lower[axis], upper[axis] = slice(None, -1), slice(1, None)
        change[tuple(lower)] += flux
        change[tuple(upper)] -= flux
    return u + np.float32(dt) * change


def face_diffusivity(diffusivity: np.ndarray) -> list[np.ndarray]:
    """Harmonic mean of D over each pair of neighbors, per axis: zero, so no flux, where either side has none (CSF)."""
    faces = []
    for axis in range(diffusivity.ndim):
        a = np.take(diffusivity, range(diffusivity.shape[axis] - 1), axis)
        b = np.take(diffusivity, range(1, diffusivity.shape[axis]), axis)
        faces.append(np.where((a > 0) & (b > 0), 2 * a * b / np.maximum(a + b, 1e-9), 0).astype(np.float32))
    return faces


def grow(
    diffusivity: np.ndarray,
    rho: float,
    start: np.ndarray,
    *,
    spacing: float = 2.0,
    days: float = np.inf,
    volume: float = np.inf,
    visible: float = 0.16,
) -> tuple[np.ndarray, float]:
    """Let a tumor grow until ``days`` have passed or its visible part (u > ``visible``) fills ``volume`` ml.

    Args:
        diffusivity: D in mm² per day, any number of axes; 0 where no cell can go.
        rho: rate of division, per day.
        start: cell density at day 0, same shape, between 0 and 1.
        spacing: grid step h in mm.

    Returns:
        The cell density (float32) and the days that passed.
    """
    if not (np.isfinite(days) or np.isfinite(volume)):
        raise ValueError("say when growth ends: give days or volume")
    faces = face_diffusivity(diffusivity)
    u = np.where(diffusivity > 0, start, 0).astype(np.float32)
    dt = time_step(float(diffusivity.max()), rho, spacing)
    limit = volume * 1000 / spacing**u.ndim
    elapsed = 0.0
    while elapsed < days and np.count_nonzero(u > visible) < limit:
        days_now = min(dt, days - elapsed)
        before, u = u, step(u, faces, rho, spacing, days_now)
        elapsed += days_now
        if np.abs(u - before).max() < 1e-7:
            break  # it fills all that it can reach, or died out
    return u, elapsed
