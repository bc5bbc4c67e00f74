"""The growth equation against its known front speed, its barriers, and its bookkeeping."""

import numpy as np
import pytest

from brainlib.data.phantom.growth import grow, time_step


def front(u: np.ndarray, spacing: float) -> float:
    """Where a profile that falls from left to right crosses one half, in mm."""
    k = np.flatnonzero(u > 0.5)[-1]
    return spacing * (k + (u[k] - 0.5) / (u[k] - u[k + 1]))


@pytest.mark.parametrize(("diffusivity", "rho"), [(0.5, 0.05), (0.3, 0.02)])
def test_front_runs_at_the_speed_of_fisher(diffusivity, rho):
    """Speed 2 sqrt(D rho) in a slab. Two known deviations, so a tolerance of 6 %: the front is still slower by
    3 / (2 t sqrt(rho / D)) at time t (Bramson 1983; added back here), and the grid is coarse against its width."""
    spacing = 1.0
    slab = np.full((400, 2, 2), diffusivity, np.float32)
    start = np.zeros_like(slab)
    start[:5] = 1
    early, late = 8 / rho, 16 / rho
    a, _ = grow(slab, rho, start, spacing=spacing, days=early)
    b, _ = grow(slab, rho, start, spacing=spacing, days=late)
    speed = (front(b[:, 0, 0], spacing) - front(a[:, 0, 0], spacing)) / (late - early)
    lag = 1.5 * np.sqrt(diffusivity / rho) * np.log(late / early) / (late - early)
    assert speed + lag == pytest.approx(2 * np.sqrt(diffusivity * rho), rel=0.06)
    assert np.ptp(b, axis=(1, 2)).max() < 1e-5  # a slab stays a slab


def test_nothing_flows_into_fluid_and_nothing_is_lost():
    tissue = np.full((30, 12, 12), 0.4, np.float32)
    tissue[15] = 0  # a wall of fluid
    start = np.zeros_like(tissue)
    start[5, 6, 6] = 1
    u, days = grow(tissue, 1e-9, start, spacing=2, days=500)  # diffusion alone
    assert days == pytest.approx(500)
    assert u[15:].max() == 0
    assert u.sum() == pytest.approx(1, rel=1e-4)
    assert 0 <= u.min() and u.max() < 0.1


def test_division_alone_is_logistic():
    # A uniform tumor has no gradient, so diffusion does nothing but set the time step: 0.3 days, small against 1 / rho.
    u, _ = grow(np.full((4, 4), 0.5, np.float32), 0.02, np.full((4, 4), 0.1), spacing=1, days=100)
    e = np.exp(0.02 * 100)
    assert u == pytest.approx(0.1 * e / (0.9 + 0.1 * e), rel=0.005)


def test_growth_stops_at_the_volume():
    brain = np.full((40, 40, 40), 0.3, np.float32)
    start = np.zeros_like(brain)
    start[20, 20, 20] = 1
    u, _ = grow(brain, 0.03, start, spacing=2, volume=20)
    assert (u > 0.16).sum() * 8 / 1000 == pytest.approx(20, rel=0.15)  # at most one step too far
    full, _ = grow(brain[:6, :6, :6], 0.03, start[16:22, 16:22, 16:22], spacing=2, volume=20)
    assert full.min() > 0.99  # a brain smaller than that ends it as well


def test_growth_needs_an_end():
    with pytest.raises(ValueError, match="days or volume"):
        grow(np.ones((3, 3)), 0.1, np.zeros((3, 3)))


def test_time_step_is_the_shorter_of_two_limits():
    assert time_step(0.5, 0.001, 2) == pytest.approx(0.9 * 4 / 3)
    assert time_step(1e-6, 0.03, 2) == pytest.approx(10)
