"""Metrics of segmentation against closed forms, against MONAI, SciPy, scikit-image and scikit-learn, by properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice
from scipy import ndimage
from skimage.measure import label
from skimage.metrics import hausdorff_distance
from sklearn import metrics as judge

from brainlib import segmentation
from brainlib.data.brats import region_masks
from brainlib.files import DataError
from brainlib.segmentation import (
    PIXEL_METRICS,
    Counts,
    dice,
    false_negative_rate,
    hausdorff95,
    iou,
    label_map,
    lesion_wise_dice,
    precision,
    recall,
    score_volume,
    slice_dice,
    surface_dice,
    surface_distances,
)

quick = settings(deadline=None, max_examples=30, derandomize=True)
FUNCTIONS = {name: getattr(segmentation, name) for name in PIXEL_METRICS}


def blobs(rng: np.random.Generator, shape: tuple[int, ...], share: float) -> np.ndarray:
    """A mask of smooth pieces that covers about this share; it may touch the edges."""
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    return smooth > np.quantile(smooth, 1 - share)


@st.composite
def pairs(draw, empty=True):
    """Two masks of a slice or a volume that resemble each other, or not."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.sampled_from([(12, 17), (30, 24), (7, 12, 11)]))
    target = blobs(rng, shape, draw(st.sampled_from([0.0, 0.05, 0.3] if empty else [0.05, 0.3])))
    if draw(st.booleans()):
        prediction = np.roll(target, draw(st.integers(0, 3)), draw(st.integers(0, len(shape) - 1)))
        prediction ^= rng.random(shape) < 0.01
    else:
        prediction = blobs(rng, shape, draw(st.sampled_from([0.0, 0.1] if empty else [0.1])))
    assume(empty or (prediction.any() and target.any()))
    return prediction, target


def box(shape, *sides) -> np.ndarray:
    """A mask that is True in one box, given as (start, stop) an axis."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


# Pixel metrics


def test_pixel_metrics_by_hand():
    """Of 20 pixels 3 are right, 1 is too many, 2 are missing."""
    target = box((4, 5), (0, 1), (0, 5))
    prediction = box((4, 5), (0, 1), (0, 3)) | box((4, 5), (3, 4), (0, 1))
    found = {name: metric(prediction, target) for name, metric in FUNCTIONS.items()}
    assert found == pytest.approx(
        {
            "dice": 6 / 9,
            "iou": 3 / 6,
            "accuracy": 17 / 20,
            "false_positive_rate": 1 / 15,
            "false_negative_rate": 2 / 5,
            "precision": 3 / 4,
            "recall": 3 / 5,
        }
    )


@quick
@given(pairs(empty=False))
def test_pixel_metrics_agree_with_scikit_learn(pair):
    p, t = (mask.ravel() for mask in pair)
    expected = {
        "dice": judge.f1_score(t, p),
        "iou": judge.jaccard_score(t, p),
        "accuracy": judge.accuracy_score(t, p),
        "false_positive_rate": 1 - judge.recall_score(~t, ~p),
        "false_negative_rate": 1 - judge.recall_score(t, p),
        "precision": judge.precision_score(t, p),
        "recall": judge.recall_score(t, p),
    }
    assert {name: metric(*pair) for name, metric in FUNCTIONS.items()} == pytest.approx(expected)


@quick
@given(pairs(empty=False))
def test_dice_and_iou_agree_with_monai(pair):
    p, t = (torch.from_numpy(mask)[None, None] for mask in pair)
    assert dice(p, t) == pytest.approx(compute_dice(p, t).item(), rel=1e-6)
    assert iou(p, t) == pytest.approx(compute_iou(p, t).item(), rel=1e-6)


@quick
@given(pairs(), st.sampled_from(segmentation.EMPTY))
def test_properties_of_pixel_metrics(pair, empty):
    p, t = pair
    d = dice(p, t, empty=empty)
    same = lambda x: pytest.approx(x, nan_ok=True)  # noqa: E731
    assert d == same(dice(t, p, empty=empty))
    assert iou(p, t, empty=empty) == same(d / (2 - d))
    assert precision(p, t, empty=empty) == same(recall(t, p, empty=empty))
    assert false_negative_rate(p, t, empty=empty) == same(1 - recall(p, t, empty=empty))
    for metric in FUNCTIONS.values():
        value = metric(p, t, empty=empty)
        assert 0 <= value <= 1 or (empty == "nan" and math.isnan(value))
    assert dice(t, t) == 1


NAN, INF = math.nan, math.inf
FULL = np.ones((6, 6), bool)
NONE = ~FULL
SOME = box((6, 6), (1, 3), (2, 5))
# What the rules say for: both masks empty, the target alone empty, the prediction alone empty.
RULES = {
    "dice": {"brats": (1, 0, 0), "one": (1, 0, 0), "nan": (NAN, 0, 0)},
    "iou": {"brats": (1, 0, 0), "one": (1, 0, 0), "nan": (NAN, 0, 0)},
    "accuracy": {"brats": (1, 30 / 36, 30 / 36), "one": (1, 30 / 36, 30 / 36), "nan": (1, 30 / 36, 30 / 36)},
    "false_positive_rate": {"brats": (0, 1 / 6, 0), "one": (0, 1 / 6, 0), "nan": (0, 1 / 6, 0)},
    "false_negative_rate": {"brats": (0, 1, 1), "one": (0, 0, 1), "nan": (NAN, NAN, 1)},
    "precision": {"brats": (1, 0, 0), "one": (1, 0, 1), "nan": (NAN, 0, NAN)},
    "recall": {"brats": (1, 0, 0), "one": (1, 1, 0), "nan": (NAN, NAN, 0)},
    "hausdorff95": {"brats": (0, 373.13, 373.13), "one": (0, INF, INF), "nan": (NAN, NAN, NAN)},
    "surface_dice": {"brats": (1, 0, 0), "one": (1, 0, 0), "nan": (NAN, 0, 0)},
    "lesion_wise_dice": {"brats": (1, 0, 0), "one": (1, 0, 0), "nan": (NAN, 0, 0)},
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("empty", segmentation.EMPTY)
def test_empty_masks(name, empty):
    options = {"surface_dice": {"tolerance": 1}, "lesion_wise_dice": {"minimum": 0}}.get(name, {})
    metric = getattr(segmentation, name)
    found = [metric(*pair, empty=empty, **options) for pair in [(NONE, NONE), (SOME, NONE), (NONE, SOME)]]
    assert found == pytest.approx(list(RULES[name][empty]), nan_ok=True)


def test_a_target_without_background():
    """The one other denominator that can be 0."""
    for prediction in (NONE, SOME, FULL):
        found = [segmentation.false_positive_rate(prediction, FULL, empty=empty) for empty in segmentation.EMPTY]
        assert found == pytest.approx([0, 0, NAN], nan_ok=True)


def test_the_worst_distance_is_the_diagonal_of_a_brats_volume():
    assert segmentation.WORST_DISTANCE == pytest.approx(math.dist((0, 0, 0), (240, 240, 155)), abs=0.005)


# Surfaces


def test_distances_by_hand():
    a, b = box((9, 9), (2, 3), (1, 2)), box((9, 9), (5, 6), (5, 6))
    assert hausdorff95(a, b) == 5
    assert hausdorff95(a, b, spacing=2) == 10
    assert hausdorff95(a, b, spacing=(4, 0.25)) == pytest.approx(math.hypot(12, 1))
    assert surface_dice(a, b, tolerance=4.9) == 0 and surface_dice(a, b, tolerance=5) == 1


def test_the_surface_is_what_touches_the_outside():
    """A 4 × 5 box in the middle has 14 pixels of outline; one at the edge of the image keeps its outline there."""
    for target in (box((9, 9), (2, 6), (3, 8)), box((9, 9), (0, 4), (4, 9))):
        forth, back = surface_distances(target, target)
        assert len(forth) == len(back) == 14 and not forth.any()
    assert len(surface_distances(np.ones((3, 3, 3), bool), np.ones((3, 3, 3), bool))[0]) == 26


def test_the_worst_twentieth_does_not_count():
    """A line of 100 pixels, and a false one beside it at 30 mm: of 5 in 105 nothing is seen, of 7 in 107 much is."""
    line = box((40, 120), (0, 1), (0, 100))
    assert hausdorff95(line | box(line.shape, (30, 31), (0, 5)), line) == 0
    assert hausdorff95(line | box(line.shape, (30, 31), (0, 7)), line) == 30
    # Rank 0.95 · 105 = 99.75 among 0 to 105 lies three quarters of the way from the last 0 to the first 30.
    assert hausdorff95(line | box(line.shape, (30, 31), (0, 6)), line) == pytest.approx(22.5)


def test_each_direction_has_its_own_percentile():
    """A small island far away is a twentieth of all distances or more only among those of the prediction."""
    target = box((60, 60), (0, 20), (0, 20))
    prediction = target | box((60, 60), (50, 53), (50, 53))
    forth, back = surface_distances(prediction, target)
    assert not back.any() and hausdorff95(prediction, target) == np.percentile(forth, 95) > 40
    assert np.percentile(np.concatenate([forth, back]), 95) < hausdorff95(prediction, target)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@quick
@given(pairs(empty=False), st.sampled_from([1.0, 0.5, (1.0, 2.5, 0.7)]), st.sampled_from([0.0, 1.0, 1.5, 4.0]))
def test_boundary_metrics_agree_with_monai(pair, spacing, tolerance):
    spacing = spacing[: pair[0].ndim] if isinstance(spacing, tuple) else spacing
    p, t = (torch.from_numpy(mask)[None, None] for mask in pair)
    options = {"include_background": True, "spacing": spacing}
    expected = compute_hausdorff_distance(p, t, percentile=95, **options).item()
    assert hausdorff95(*pair, spacing=spacing) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    tolerance += 1e-4  # distances in float32 fall on either side of a tolerance that they equal
    expected = compute_surface_dice(p, t, [tolerance], **options).item()
    assert surface_dice(*pair, tolerance=tolerance, spacing=spacing) == pytest.approx(expected, rel=1e-5)


@quick
@given(pairs(empty=False), st.floats(0.3, 3), st.floats(0.3, 3))
def test_distances_agree_with_scipy_and_scikit_image(pair, first, second):
    p, t = (np.pad(mask, 1) for mask in pair)
    surfaces = [mask & (ndimage.uniform_filter(mask.astype(float), 3) < 1) for mask in (p, t)]
    # The filter sees corners as well; leave to the surface only what has an outside neighbor along an axis.
    for surface, mask in zip(surfaces, (p, t), strict=True):
        outside = [np.roll(~mask, step, axis) for axis in range(mask.ndim) for step in (-1, 1)]
        surface &= np.any(outside, axis=0)
    spacing = (first, second, 1.0)[: p.ndim]
    forth, back = surface_distances(p, t, spacing=spacing)
    by_transform = [
        ndimage.distance_transform_edt(~other, sampling=spacing)[one] for one, other in (surfaces, surfaces[::-1])
    ]
    np.testing.assert_allclose(forth, by_transform[0], atol=1e-9)
    np.testing.assert_allclose(back, by_transform[1], atol=1e-9)
    farthest = max(map(np.max, surface_distances(p, t)))
    assert farthest == pytest.approx(hausdorff_distance(*surfaces))


@quick
@given(pairs(empty=False), st.sampled_from([0.5, 2.0]))
def test_properties_of_boundary_metrics(pair, factor):
    p, t = pair
    distance = hausdorff95(p, t)
    assert distance == hausdorff95(t, p)
    assert hausdorff95(p, t, spacing=factor) == pytest.approx(factor * distance)
    assert hausdorff95(p[::-1], t[::-1]) == distance
    assert hausdorff95(np.pad(p, 2), np.pad(t, 2)) == pytest.approx(distance)
    assert hausdorff95(t, t) == 0 and surface_dice(t, t, tolerance=0) == 1
    shares = [surface_dice(p, t, tolerance=tolerance) for tolerance in (0, 1, 3, 1000)]
    assert shares == sorted(shares) and 0 <= shares[0] and shares[-1] == 1
    assert surface_dice(p, t, tolerance=1) == surface_dice(t, p, tolerance=1)
    assert surface_dice(p, t, tolerance=distance) >= 0.95 - 2 / len(surface_distances(p, t)[0])


# Lesions


def lesions_one_by_one(prediction, target, dilation, minimum):
    """The rule of BraTS 2023 in loops, with scikit-image for the components."""
    structure = ndimage.generate_binary_structure(target.ndim, 2)
    grow = lambda mask: ndimage.binary_dilation(mask, structure, iterations=dilation)  # noqa: E731
    zones, pieces = (label(mask, connectivity=mask.ndim) for mask in (grow(target), prediction))
    scores, used = [], set()
    for zone in range(1, zones.max() + 1):
        lesion = target & (zones == zone)
        touching = set(np.unique(pieces[grow(lesion)])) - {0}
        used |= touching
        if lesion.sum() > minimum:
            found = np.isin(pieces, list(touching))
            scores.append(2 * (found & lesion).sum() / (found.sum() + lesion.sum()))
    scores += [0.0] * (pieces.max() - len(used))
    return np.mean(scores) if scores else 1.0


@quick
@given(pairs(), st.sampled_from([1, 2]), st.sampled_from([0, 5, 50]))
def test_lesions_agree_with_loops(pair, dilation, minimum):
    expected = lesions_one_by_one(*pair, dilation, minimum)
    assert lesion_wise_dice(*pair, dilation=dilation, minimum=minimum) == pytest.approx(expected)


def test_lesions_by_hand():
    shape = (30, 30, 60)
    large, small = box(shape, (2, 8), (2, 8), (2, 8)), box(shape, (20, 24), (20, 24), (40, 44))
    island = box(shape, (2, 3), (28, 29), (57, 58))
    assert lesion_wise_dice(large | small, large | small) == 1
    assert lesion_wise_dice(large, large | small) == 1 / 2  # the small one is missed
    assert dice(large, large | small) > 0.85
    assert lesion_wise_dice(large | island, large | small) == 1 / 3  # and a false one of a single pixel
    assert lesion_wise_dice(np.zeros(shape, bool), large | small) == 0
    half = box(shape, (2, 5), (2, 8), (2, 8))
    assert lesion_wise_dice(half | small, large | small) == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.parametrize("gap, lesions", [(6, 1), (7, 2)])
def test_pieces_closer_than_two_dilations_are_one_lesion(gap, lesions):
    """Three pixels from either side leave no gap of six."""
    shape = (12, 12, 40)
    first, second = box(shape, (3, 8), (3, 8), (4, 9)), box(shape, (3, 8), (3, 8), (9 + gap, 14 + gap))
    found = lesion_wise_dice(first, first | second)
    assert found == pytest.approx(2 / 3 if lesions == 1 else 1 / 2)


def test_a_corner_connects():
    """What touches by a corner alone is one lesion in the target, and one piece in the prediction."""
    shape = (12, 12, 12)
    first, second = box(shape, (2, 5), (2, 5), (2, 5)), box(shape, (5, 8), (5, 8), (5, 8))
    assert lesion_wise_dice(first, first | second, dilation=0, minimum=0) == pytest.approx(2 / 3)
    assert lesion_wise_dice(first | second, first, dilation=0, minimum=0) == pytest.approx(2 / 3)


@pytest.mark.parametrize("pixels, expected", [(50, 1.0), (51, 1 / 2)])
def test_lesions_of_fifty_pixels_are_left_out(pixels, expected):
    """Missed or found, with no false lesion where it is found badly."""
    shape = (20, 20, 60)
    large, small = box(shape, (2, 8), (2, 8), (2, 8)), box(shape, (12, 17), (12, 17), (40, 42))
    small[12, 12, 42] = pixels == 51
    assert small.sum() == pixels
    assert lesion_wise_dice(large, large | small) == expected
    touching = box(shape, (17, 18), (12, 17), (40, 50))
    assert lesion_wise_dice(large | touching, large | small) == pytest.approx(1.0 if pixels == 50 else (1 + 0) / 2)


def test_a_piece_may_belong_to_two_lesions():
    shape = (12, 12, 60)
    first, second = box(shape, (3, 8), (3, 8), (4, 9)), box(shape, (3, 8), (3, 8), (40, 45))
    bridge = box(shape, (3, 8), (3, 8), (4, 45))
    each = 2 * 125 / (125 + 41 * 25)
    assert lesion_wise_dice(bridge, first | second) == pytest.approx(each)


# Many slices


def batch_of_masks(seed=0, slices=12, channels=3, side=16):
    """Smooth masks; some channels of some slices are empty in the target, in the prediction or in both."""
    rng = np.random.default_rng(seed)
    masks = np.stack([blobs(rng, (side, side), 0.2) for _ in range(2 * slices * channels)])
    prediction, target = masks.reshape(2, slices, channels, side, side)
    prediction[rng.random((slices, channels)) < 0.4] = False
    target[rng.random((slices, channels)) < 0.4] = False
    return torch.from_numpy(prediction), torch.from_numpy(target), np.sort(rng.integers(3, 7, slices))


def counted(prediction, target, patients, size=5) -> Counts:
    counts = Counts(("NCR", "ED", "ET"))
    for start in range(0, len(prediction), size):
        part = slice(start, start + size)
        counts.update(prediction[part], target[part], patients[part])
    return counts


@quick
@given(st.integers(0, 10_000), st.sampled_from(segmentation.EMPTY))
def test_counts_give_the_scores_of_the_masks(seed, empty):
    """Per slice those of the slices, per patient those of the volumes: for every metric, however it was batched."""
    prediction, target, patients = batch_of_masks(seed)
    counts = counted(prediction, target, patients, size=1 + seed % 12)
    assert len(counts) == 12 and counts.patients.tolist() == sorted(set(patients))
    by_slice, by_patient = counts.scores("per_slice", empty), counts.scores("per_patient", empty)
    for name, metric in FUNCTIONS.items():
        for c in range(3):
            slices = [metric(p[c], t[c], empty=empty) for p, t in zip(prediction, target, strict=True)]
            np.testing.assert_allclose(by_slice[name][:, c], slices)
            volumes = [
                metric(prediction[patients == i, c], target[patients == i, c], empty=empty) for i in counts.patients
            ]
            np.testing.assert_allclose(by_patient[name][:, c], volumes)


def as_the_study_did(prediction, target, size):
    """Per channel over a batch, 1e-6 here and there, None where nothing is; then averaged over batches and channels."""
    names = ("dice", "iou", "accuracy", "false_positive_rate", "false_negative_rate", "precision", "recall")
    found = {name: [[], [], []] for name in names}
    for start in range(0, len(prediction), size):
        for c in range(3):
            p, t = (masks[start : start + size, c].astype(float) for masks in (prediction, target))
            i = (p * t).sum()
            if p.sum() + t.sum() == 0:
                continue
            fp, fn, tn = (p * (1 - t)).sum(), ((1 - p) * t).sum(), ((1 - p) * (1 - t)).sum()
            values = [
                (2 * i + 1e-6) / (p.sum() + t.sum() + 1e-6),
                i / (np.maximum(p, t).sum() + 1e-6),
                (p == t).mean(),
                fp / (fp + tn + 1e-6),
                fn / (fn + i + 1e-6),
                i / (i + fp + 1e-6),
                i / (i + fn + 1e-6),
            ]
            for name, value in zip(names, values, strict=True):
                found[name][c].append(value)
    return {name: [np.mean(values) if values else NAN for values in columns] for name, columns in found.items()}


@quick
@given(st.integers(0, 10_000), st.sampled_from([1, 3, 5, 12]), st.booleans())
def test_batch_pooled_is_what_the_study_computed(seed, size, without_et):
    prediction, target, patients = batch_of_masks(seed)
    if without_et:
        prediction[:, 2], target[:, 2] = False, False
    found = counted(prediction, target, patients, size).means("batch_pooled")
    expected = as_the_study_did(prediction.numpy(), target.numpy(), size)
    assert list(found) == list(expected)
    for name, columns in expected.items():
        assert [found[name][c] for c in ("NCR", "ED", "ET")] == pytest.approx(columns, rel=1e-12, nan_ok=True)
        assert found[name]["mean"] == pytest.approx(np.nanmean(columns), rel=1e-12)


def test_a_tiny_denominator_shows_the_studys_constant():
    """One pixel predicted, another true: 1e-6 / (2 + 1e-6), not 0."""
    prediction, target = torch.zeros(2, 1, 1, 8, 8, dtype=torch.bool)
    prediction[..., 0, 0], target[..., 5, 5] = True, True
    counts = Counts(["ET"])
    counts.update(prediction, target, 0)
    assert counts.scores("batch_pooled")["dice"].item() == pytest.approx(5e-7, rel=1e-5)
    assert counts.scores("batch_pooled")["accuracy"].item() == 62 / 64
    assert counts.scores("per_slice")["dice"].item() == 0


def test_the_same_predictions_score_0_97_pooled_and_0_25_per_slice():
    """Eight large tumors are outlined perfectly, twenty-four small ones are not seen at all."""
    target = torch.zeros(32, 1, 64, 64, dtype=torch.bool)
    target[:8, :, 10:50, 10:50] = True
    target[8:, :, 30:35, 30:37] = True
    prediction = target.clone()
    prediction[8:] = False
    pooled = 2 * 8 * 1600 / (2 * 8 * 1600 + 24 * 35)

    own_patients, shared_patients = Counts(["WT"]), Counts(["WT"])
    own_patients.update(prediction, target, range(32))
    shared_patients.update(prediction, target, np.arange(32) % 8)
    score = lambda counts, aggregation: counts.means(aggregation)["dice"]["WT"]  # noqa: E731
    assert score(own_patients, "batch_pooled") == pytest.approx(pooled) and round(pooled, 3) == 0.968
    assert score(own_patients, "per_slice") == 0.25
    # By patient it depends on whose the small ones are: somebody's only tumor, or the ends of a large one.
    assert score(own_patients, "per_patient") == 0.25
    assert score(shared_patients, "per_patient") == pytest.approx(pooled)


def test_empty_slices_are_where_the_rules_part():
    """Ten slices, one with a tumor that is half found; nine have none and are left empty."""
    prediction, target = torch.zeros(2, 10, 1, 8, 8, dtype=torch.bool)
    target[0, :, 2:4, 2:6], prediction[0, :, 2:4, 2:4] = True, True
    counts = Counts(["WT"])
    counts.update(prediction, target, 0)
    one = 2 * 4 / (4 + 8)
    values = {empty: counts.means("per_slice", empty)["dice"]["WT"] for empty in segmentation.EMPTY}
    assert values == pytest.approx({"brats": (one + 9) / 10, "one": (one + 9) / 10, "nan": one})
    assert counts.means("per_slice")["dice"] == counts.means("per_slice", "brats")["dice"]


def test_a_table_adds_up():
    prediction, target, patients = batch_of_masks()
    counts = counted(prediction, target, patients)
    tables = {aggregation: counts.table(aggregation) for aggregation in segmentation.AGGREGATIONS}
    assert {name: len(table) for name, table in tables.items()} == {
        "per_patient": len(set(patients)),
        "per_slice": 12,
        "batch_pooled": 3,
    }
    p, t = prediction.numpy(), target.numpy()
    truth = np.stack([(x & y).sum((0, 2, 3)) for x, y in [(p, t), (p, ~t), (~p, t), (~p, ~t)]], -1)
    for table in tables.values():
        assert table.dtype == np.int64 and (table.sum(0) == truth).all()


def test_counts_are_whole_numbers_beyond_what_float32_can_count():
    mask = torch.ones(1, 1, 4097, 4097, dtype=torch.bool)  # an odd number above 2 ** 24
    counts = Counts(["WT"])
    counts.update(mask, mask, 0)
    assert counts.table()[0, 0].tolist() == [4097**2, 0, 0, 0]


def test_counting_does_not_wait_for_the_device():
    """Tensors of the meta device hold no values: to ask for one is an error."""
    masks = torch.zeros(4, 3, 16, 16, dtype=torch.bool, device="meta")
    counts = Counts()
    counts.update(masks, masks, np.arange(4))
    assert len(counts) == 4
    with pytest.raises((NotImplementedError, RuntimeError)):
        counts.table()


def test_patients_in_any_order_and_form():
    prediction, target, patients = batch_of_masks(3)
    expected = counted(prediction, target, patients).scores()["iou"]
    order = np.random.default_rng(0).permutation(12)
    for form in (lambda p: p.tolist(), torch.from_numpy, lambda p: p.astype(np.int32)):
        counts = Counts(("NCR", "ED", "ET"))
        counts.update(prediction[order], target[order], form(patients[order]))
        np.testing.assert_array_equal(counts.scores()["iou"], expected)
    counts = Counts(("NCR", "ED", "ET"))
    for patient in set(patients.tolist()):
        counts.update(prediction[patients == patient], target[patients == patient], patient)
    np.testing.assert_array_equal(counts.scores()["iou"], expected)


def test_what_was_counted_does_not_change_with_the_array_it_came_from():
    prediction, target, patients = batch_of_masks()
    counts = Counts(("NCR", "ED", "ET"))
    counts.update(prediction, target, patients)
    before = counts.patients.tolist()
    patients[:] = 99
    assert counts.patients.tolist() == before


# Regions


def test_score_volume():
    rng = np.random.default_rng(0)
    labels, other = rng.choice([0, 1, 2, 4], (2, 6, 12, 10), p=[0.94, 0.02, 0.02, 0.02])
    prediction, target = region_masks(labels), torch.from_numpy(region_masks(other))
    metrics = ("recall", "hausdorff95", "surface_dice", "lesion_wise_dice")
    found = score_volume(prediction, target, metrics=metrics, spacing=(3, 1, 1), tolerance=2)
    wt = prediction[:, 0], target[:, 0]
    assert list(found) == list(metrics) and list(found["recall"]) == ["WT", "TC", "ET"]
    assert found["recall"]["WT"] == recall(*wt)
    assert found["hausdorff95"]["WT"] == hausdorff95(*wt, spacing=(3, 1, 1)) != hausdorff95(*wt)
    assert found["surface_dice"]["WT"] == surface_dice(*wt, tolerance=2, spacing=(3, 1, 1))
    assert found["lesion_wise_dice"]["ET"] == lesion_wise_dice(prediction[:, 2], target[:, 2])
    nothing = np.zeros((4, 1, 8, 8), bool)
    assert score_volume(nothing, nothing, ["ET"]) == {"dice": {"ET": 1}, "hausdorff95": {"ET": 0}}
    assert math.isnan(score_volume(nothing, nothing, ["ET"], empty="nan")["dice"]["ET"])


# Errors


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: dice(SOME.astype(float), SOME), "prediction must be bool, not float64: compare probabilities"),
        (lambda: hausdorff95(SOME, torch.ones(6, 6)), "target must be bool, not torch.float32|not float32"),
        (lambda: dice(SOME, FULL[:5]), r"\(6, 6\) and target \(5, 6\)"),
        (lambda: dice(SOME, SOME, empty="zero"), "empty='zero': choose from brats, one, nan"),
        (lambda: hausdorff95(SOME, SOME, empty="zero"), "empty='zero'"),
        (lambda: surface_dice(SOME, SOME, tolerance=1, empty="zero"), "empty='zero'"),
        (lambda: lesion_wise_dice(SOME, SOME, empty="zero"), "empty='zero'"),
        (lambda: hausdorff95(SOME, SOME, spacing=(1, 1, 1)), r"spacing=\(1, 1, 1\).*2, one an axis"),
        (lambda: hausdorff95(SOME, SOME, spacing=0), "spacing=0"),
        (lambda: hausdorff95(SOME, SOME, spacing=NAN), "spacing=nan"),
        (lambda: surface_dice(SOME, SOME, tolerance=-1), "tolerance=-1"),
        (lambda: lesion_wise_dice(SOME, SOME, dilation=-1), "dilation=-1"),
        (lambda: score_volume(SOME, SOME), r"\(Z, 3, H, W\) for WT, TC, ET, not \(6, 6\)"),
        (lambda: score_volume(SOME[:, None, None], SOME[:, None, None], ["ET"], metrics=["dce"]), "'dce'"),
        (lambda: Counts().scores(), "call update"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(DataError, match=message):
        call()


def test_mistakes_in_counting_are_named():
    counts = Counts()
    masks = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    with pytest.raises(DataError, match="must be bool, not torch.float32 and torch.bool: compare"):
        counts.update(masks.float(), masks, 0)
    with pytest.raises(DataError, match=r"\(B, 3, ...\) for WT, TC, ET, not \(2, 2, 4, 4\)"):
        counts.update(masks[:, :2], masks[:, :2], 0)
    with pytest.raises(DataError, match=r"\(2, 3, 4, 4\) and \(1, 3, 4, 4\)"):
        counts.update(masks, masks[:1], 0)
    with pytest.raises(DataError, match="2 integers, or one for all, not torch.int64 .3,."):
        counts.update(masks, masks, [1, 2, 3])
    with pytest.raises(DataError, match="torch.float32"):
        counts.update(masks, masks, [1.0, 2.0])
    assert len(counts) == 0
    counts.update(masks, masks, 0)
    with pytest.raises(DataError, match="aggregation='by_patient'.*per_patient, per_slice, batch_pooled"):
        counts.scores("by_patient")
    with pytest.raises(DataError, match="the study's own rule"):
        counts.scores("batch_pooled", "brats")
    with pytest.raises(DataError, match="metrics=.'F1'.*dice, iou"):
        counts.means(metrics=["F1"])
    with pytest.raises(DataError, match="empty='zero'"):
        counts.scores(empty="zero")


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("regions", [("NCR", "ED", "ET"), ("ET", "NCR", "ED"), ("WT", "TC", "ET"), ("TC", "ET", "WT")])
def test_labels_come_back_from_their_masks(kind, regions):
    labels = np.random.default_rng(0).choice(np.array([0, 1, 2, 4], np.uint8), (3, 8, 9))
    found = label_map(kind(region_masks(labels, regions)), regions)
    assert type(found) is type(kind(labels)) and np.array_equal(np.asarray(found), labels)


def test_overlapping_masks_give_one_label_a_pixel():
    one = np.ones((1, 1, 1), bool)
    no = ~one
    for masks, regions, value in (
        ([one, one, no], ("NCR", "ED", "ET"), 1),
        ([one, one, one], ("NCR", "ED", "ET"), 4),
        ([no, one, no], ("WT", "TC", "ET"), 1),  # a core that the whole tumor forgot
        ([no, no, one], ("WT", "TC", "ET"), 4),
    ):
        assert label_map(np.stack(masks, -3), regions).item() == value
    for masks, regions, message in (
        (np.ones((3, 4, 4), bool), ("WT", "ED", "ET"), "labels follow from"),
        (np.ones((2, 4, 4), bool), ("WT", "TC", "ET"), "WT, TC, ET"),
        (np.ones((3, 4, 4)), ("WT", "TC", "ET"), "float64"),
    ):
        with pytest.raises(DataError, match=message):
            label_map(masks, regions)


def test_slice_dice_is_the_mean_over_channels_of_each_slice():
    rng = np.random.default_rng(0)
    prediction, target = rng.random((5, 3, 9, 8)) > 0.6, rng.random((5, 3, 9, 8)) > 0.6
    prediction[0, 0] = target[0, 0] = False
    prediction[1, 1] = False
    logits = torch.from_numpy(np.where(prediction, 2.0, -3.0))
    expected = [
        np.mean([dice(p, t) for p, t in zip(*pair, strict=True)]) for pair in zip(prediction, target, strict=True)
    ]
    assert slice_dice(logits, torch.from_numpy(target)).tolist() == pytest.approx(expected)
