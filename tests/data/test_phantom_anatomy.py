"""Heads and tumors: masks nested and disjoint, tumors where they belong, pushing without tearing."""

import numpy as np
import pytest

from brainlib.data.phantom import Adenoma, Glioma, Head, Meningioma, Scan, Site, compose, template
from brainlib.data.phantom.anatomy import SELLA
from brainlib.data.phantom.cohort import brats_points, draw_positions
from brainlib.data.phantom.fields import SmoothField, ellipsoid
from brainlib.data.phantom.imaging import slice_points
from brainlib.data.phantom.tumors import ED, ET, NCR


@pytest.fixture(scope="module")
def head() -> Head:
    return Head(np.random.default_rng(3))


@pytest.fixture(scope="module")
def glioma(head) -> Glioma:
    return Glioma(head, np.random.default_rng(5), volume=(40, 41))


def cube(center, half: float, step: float = 2.0) -> np.ndarray:
    axis = np.arange(-half, half, step, dtype=np.float32)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, -1) + np.float32(center)[:, None]


def test_atlas_is_in_millimeters_of_mni_space():
    inside, outside = template().distances(np.float32([[0, -20, 30], [0, 0, 95]]).T)[0]
    assert inside < -30 and outside > 10
    white = template().read_matter(np.float32([[26, -20, 30]]).T)[1, 0]  # corona radiata
    assert white > 0.8


def test_tissue_fractions_add_up_to_one(head):
    points = slice_points("sagittal", 2.0, 64, 250)
    layers = head.layers(head.place(points))
    names = sorted({name for name, _ in layers})
    fractions = compose(layers, {name: np.eye(len(names))[k] for k, name in enumerate(names)}, points.shape[1])
    assert fractions.min() >= 0
    total = fractions.sum(0)
    assert total.max() < 1 + 1e-5
    deep = head.place(points).brain < -3
    assert total[deep] == pytest.approx(1, abs=1e-5)  # no air inside the brain


def test_from_atlas_inverts_to_atlas(head):
    there = np.random.default_rng(0).uniform(-60, 60, (3, 50)).astype(np.float32)
    assert head.to_atlas(head.from_atlas(there)) == pytest.approx(there, abs=0.05)


def test_glioma_masks_are_nested(head, glioma):
    place = head.place(cube(glioma.center, 44), glioma)
    layers = glioma.layers(place)
    label = glioma.labels(layers)
    assert set(np.unique(label)) == {0, NCR, ED, ET}  # one label for each voxel: the masks are disjoint
    assert (place.brain[label > 0] < 1).all()  # nothing outside the brain
    shape = (44,) * 3
    necrosis, core = (np.isin(label, values).reshape(shape) for values in ([NCR], [NCR, ET]))
    shell = np.zeros(shape, bool)  # voxels that touch necrosis
    for axis in range(3):
        for shift in (-1, 1):
            shell |= np.roll(necrosis, shift, axis)
    # Necrosis is wrapped in core, but for the few places where fluid cuts in.
    assert (shell & ~core).sum() < 0.03 * shell.sum()
    covers = dict(layers)
    assert (covers["necrosis"] <= covers["enhancing tumor"] + 1e-6).all()
    assert covers["enhancing tumor"][place.white + place.gray < 0.02].max() < 0.2  # fluid holds no tumor


def test_true_volumes_agree_with_a_finer_count(head, glioma):
    volumes = glioma.volumes(head)
    label = glioma.labels(glioma.layers(head.place(cube(glioma.center, 48, 1.5), glioma)))
    for name, values in (("edema_ml", [ED]), ("core_ml", [NCR, ET])):
        assert volumes[name] == pytest.approx(np.isin(label, values).sum() * 1.5**3 / 1000, rel=0.08, abs=0.2)
    assert 20 < volumes["core_ml"] + volumes["edema_ml"] < 90


def test_low_grade_glioma_hardly_enhances(head):
    found = [Glioma(head, np.random.default_rng(k), (30, 31), high_grade=False).volumes(head) for k in range(3)]
    assert all(v["enhancing_ml"] < 0.35 * v["core_ml"] for v in found)


def test_mass_effect_moves_brain_not_skull_and_tears_nothing(head, glioma):
    place = head.place(cube(glioma.center, 60), glioma)
    moved = np.linalg.norm(place.origin - place.points, axis=0)
    assert moved.max() > 1.5
    assert moved[place.brain > 0].max() == 0
    towards = ((place.points - glioma.center[:, None]) * (place.origin - glioma.center[:, None])).sum(0)
    assert towards.min() > -1e-3  # nothing is pulled through the center
    grid = place.origin.reshape(3, 60, 60, 60)
    assert (np.diff(grid[0], axis=0) > 0).all()  # neighbors keep their order


def test_meningioma_sits_on_the_dura_and_enhances_evenly(head):
    for seed in range(5):
        tumor = Meningioma(head, np.random.default_rng(seed))
        place = head.place(cube(tumor.center, 30), tumor)
        body = tumor.core(tumor.layers(place)) > 0.5
        assert 1 < body.sum() * 8 / 1000 < 70
        assert (place.brain[body] < 3.2).all() and (place.brain[body] > 0).any()  # inside the skull, touching it


def test_adenoma_sits_in_the_sella(head):
    for seed in range(5):
        tumor = Adenoma(head, np.random.default_rng(seed))
        place = head.place(cube(tumor.center, 30), tumor)
        body = tumor.core(tumor.layers(place)) > 0.5
        middle = head.to_atlas(place.points[:, body]).mean(1)
        assert abs(middle[0] - SELLA[0]) < 6 and abs(middle[1] - SELLA[1]) < 8
        assert -6 < middle[2] - SELLA[2] < 22


def test_a_healthy_head_has_a_bright_gland_where_the_adenoma_would_be(head):
    site = Site("S1", 0.0, 0.0, 200)
    seat = head.from_atlas(SELLA[:, None].astype(np.float32))
    place = head.place(seat)
    layers, lesion = Scan(head, None, site, np.random.default_rng(0)).tissues(place)
    assert lesion == []
    assert layers[-1][0] == "pituitary gland" and max(c[0] for n, c in layers if n == "pituitary gland") > 0.9
    adenoma = Scan(head, Adenoma(head, np.random.default_rng(0)), site, np.random.default_rng(0))
    assert "adenoma" in [n for n, c in adenoma.tissues(head.place(seat, adenoma.tumor))[0] if c[0] > 0.9]


def test_slices_go_through_the_tumor(head, glioma):
    rng = np.random.default_rng(0)
    scan = Scan(head, glioma, Site("S1", 0.02, 0.1, 200), rng)
    for plane, position in draw_positions(glioma, head, 6, rng):
        assert scan.slice(plane, position, 96, 250, (0, 0), rng)[1].sum() > 3


def test_orientation_of_planes():
    """Radiological view: the patient's right on the left of the picture; up is front (axial) or top (others)."""
    for plane, first in (("axial", (105, 113)), ("coronal", (115, 113)), ("sagittal", None)):
        points = slice_points(plane, 7.0, 5, 250).reshape(3, 5, 5)
        axes = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}[plane]
        assert (points[axes[0]] == 7).all()
        assert (np.diff(points[axes[1]], axis=0) < 0).all()
        if first:
            assert points[0, 0, 0] > points[0, 0, -1]  # right (x > 0) first


def test_brats_grid_holds_the_brain(head):
    x, y, z = brats_points(72).reshape(3, 240, 240)
    assert (z == 0).all() and np.diff(x[:, 0]).max() == -1 and np.diff(y[0]).max() == -1
    inside = (head.place(brats_points(72)).brain < 0.5).reshape(240, 240)
    assert not (inside[0].any() or inside[-1].any() or inside[:, 0].any() or inside[:, -1].any())
    assert 12_000 < inside.sum() < 30_000


def test_smooth_field_is_standardised_periodic_and_smooth():
    field = SmoothField(np.random.default_rng(0), 20, n=16, channels=2)
    points = np.random.default_rng(1).uniform(-200, 200, (3, 20_000)).astype(np.float32)
    values = field(points)
    assert values.shape == (2, 20_000)
    assert abs(values.mean()) < 0.05 and 0.75 < values.std() < 1.05  # linear interpolation takes a little
    assert field(points + 160) == pytest.approx(values, abs=2e-3)
    assert np.abs(field(points + 0.5) - values).max() < 0.5


def test_ellipsoid_distance_is_exact_for_a_sphere():
    points = np.float32([[3, 0, 0], [0, 6, 8]]).T
    assert ellipsoid(points, (0, 0, 0), (5, 5, 5)) == pytest.approx([-2, 5], abs=1e-4)
