"""Metrics against closed forms, against scikit-learn and torchmetrics, and by their properties."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as judge
from torchmetrics.functional.classification import multiclass_calibration_error

from brainlib import metrics, segmentation
from brainlib.metrics import (
    accuracy,
    auroc,
    brier_score,
    calibration_error,
    confusion_matrix,
    cross_entropy,
    macro_f1,
    mean_confidence,
    precision,
    recall,
    reliability,
    risk_coverage,
)

quick = settings(deadline=None, max_examples=40, derandomize=True)
ALL = [accuracy, mean_confidence, confusion_matrix, precision, recall, auroc, calibration_error]
ALL += [macro_f1, cross_entropy, brier_score]


@st.composite
def predictions(draw):
    """Probabilities and labels; often with ties, with few items, and with classes that do not occur."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    items, classes = draw(st.integers(1, 60)), draw(st.integers(2, 6))
    logits = rng.normal(0, draw(st.sampled_from([0.1, 1, 5])), (items, classes))
    if draw(st.booleans()):
        logits = logits.round()  # ties
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities, rng.integers(0, draw(st.integers(1, classes)), items)


def one_hot(classes: list[int], count: int = 3) -> np.ndarray:
    return np.eye(count)[classes]


@quick
@given(predictions())
def test_agrees_with_scikit_learn(case):
    probabilities, labels = case
    names, said = range(probabilities.shape[1]), probabilities.argmax(1)
    assert accuracy(probabilities, labels) == pytest.approx(judge.accuracy_score(labels, said))
    np.testing.assert_array_equal(
        confusion_matrix(probabilities, labels), judge.confusion_matrix(labels, said, labels=names)
    )
    options = {"labels": names, "average": None, "zero_division": np.nan}
    np.testing.assert_allclose(precision(probabilities, labels), judge.precision_score(labels, said, **options))
    np.testing.assert_allclose(recall(probabilities, labels), judge.recall_score(labels, said, **options))
    for c, value in enumerate(auroc(probabilities, labels)):
        if 0 < (labels == c).sum() < len(labels):
            assert value == pytest.approx(judge.roc_auc_score(labels == c, probabilities[:, c]))
        else:
            assert np.isnan(value)
    # Without a list of labels scikit-learn averages over those that occur or are said.
    assert macro_f1(probabilities, labels) == pytest.approx(judge.f1_score(labels, said, average="macro"))
    assert cross_entropy(probabilities, labels) == pytest.approx(judge.log_loss(labels, probabilities, labels=names))
    expected = judge.brier_score_loss(labels, probabilities, labels=names, scale_by_half=False)
    assert brier_score(probabilities, labels) == pytest.approx(expected)


@pytest.mark.parametrize("bins", [5, 15])
@pytest.mark.parametrize("sharpness", [0.3, 2.0])
def test_calibration_error_agrees_with_torchmetrics(bins, sharpness):
    rng = np.random.default_rng(0)
    logits = sharpness * rng.normal(size=(500, 4))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = rng.integers(0, 4, 500)
    expected = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(labels), num_classes=4, n_bins=bins, norm="l1"
    )
    assert calibration_error(probabilities, labels, bins) == pytest.approx(float(expected), abs=1e-6)


def test_metrics_of_segmentation_can_be_had_from_here():
    """But for those whose names stand for a metric of classification."""
    for name in ("dice", "iou", "hausdorff95", "surface_dice", "lesion_wise_dice", "score_volume", "Counts"):
        assert getattr(metrics, name) is getattr(segmentation, name) and name in metrics.__all__
    for name in ("accuracy", "precision", "recall"):
        assert getattr(metrics, name) is not getattr(segmentation, name)
    for module in ("brainlib.metrics", "brainlib.segmentation", "brainlib.data"):  # each may come first
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)


def test_calibration_error_by_hand():
    # Two items in (0.8, 1], one right: |0.5 - 0.9|. Two in (0.6, 0.8], both right: |1 - 0.7|. Half of the items each.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.7, 0.3], [0.3, 0.7]])
    labels = np.array([0, 1, 0, 1])
    assert calibration_error(probabilities, labels, bins=5) == pytest.approx(0.5 * 0.4 + 0.5 * 0.3)


def test_calibration_error_at_its_ends():
    sure = one_hot([0, 1, 2, 0])
    assert calibration_error(sure, np.array([0, 1, 2, 0])) == 0
    assert calibration_error(sure, np.array([1, 2, 0, 1])) == 1
    # Confidence 0.75 and right three times in four: nothing is wrong with that.
    assert calibration_error(np.tile([0.75, 0.25], (4, 1)), np.array([0, 0, 0, 1])) == pytest.approx(0)


def test_calibration_bins_are_closed_on_the_right():
    # 0.5 belongs to (0.25, 0.5], not to the bin of 0.6: otherwise the two gaps would cancel.
    probabilities = np.array([[0.5, 0.3, 0.2], [0.6, 0.2, 0.2]])
    assert calibration_error(probabilities, np.array([0, 1]), bins=4) == pytest.approx(0.5 * 0.5 + 0.5 * 0.6)


@quick
@given(predictions(), st.integers(0, 100))
def test_order_of_items_does_not_matter(case, seed):
    probabilities, labels = case
    order = np.random.default_rng(seed).permutation(len(labels))
    for metric in ALL:
        np.testing.assert_allclose(
            metric(probabilities[order], labels[order]), metric(probabilities, labels), err_msg=metric.__name__
        )


@quick
@given(predictions(), st.randoms(use_true_random=False))
def test_names_of_classes_do_not_matter(case, random):
    probabilities, labels = case
    names = list(range(probabilities.shape[1]))
    random.shuffle(names)
    names = np.array(names)
    renamed = np.empty_like(probabilities)
    renamed[:, names] = probabilities
    np.testing.assert_allclose(auroc(renamed, names[labels])[names], auroc(probabilities, labels))
    second, first = np.sort(probabilities, 1)[:, -2:].T
    if (first > second).all():  # of two equal ones the first named is said
        np.testing.assert_allclose(recall(renamed, names[labels])[names], recall(probabilities, labels))
        np.testing.assert_allclose(precision(renamed, names[labels])[names], precision(probabilities, labels))
        assert accuracy(renamed, names[labels]) == accuracy(probabilities, labels)


@quick
@given(predictions())
def test_ranges_and_identities(case):
    probabilities, labels = case
    matrix = confusion_matrix(probabilities, labels)
    assert matrix.sum() == len(labels) and matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix.sum(1), np.bincount(labels, minlength=len(matrix)))
    assert accuracy(probabilities, labels) == pytest.approx(matrix.trace() / len(labels))
    # Accuracy is the recall of the classes, weighted by how often they occur.
    assert np.nansum(recall(probabilities, labels) * matrix.sum(1)) / len(labels) == pytest.approx(
        accuracy(probabilities, labels)
    )
    for metric in (precision, recall, auroc):
        values = metric(probabilities, labels)
        assert values.shape == (probabilities.shape[1],)
        assert ((values >= 0) & (values <= 1) | np.isnan(values)).all()
    assert 1 / probabilities.shape[1] - 1e-12 <= mean_confidence(probabilities) <= 1 + 1e-12
    # One bin: the distance between mean confidence and accuracy. More bins can only add to it.
    one = calibration_error(probabilities, labels, bins=1)
    assert one == pytest.approx(abs(mean_confidence(probabilities) - accuracy(probabilities, labels)))
    assert one - 1e-12 <= calibration_error(probabilities, labels) <= 1 + 1e-12


@quick
@given(predictions())
def test_auroc_depends_on_the_order_alone(case):
    probabilities, labels = case
    np.testing.assert_allclose(auroc(probabilities**3, labels), auroc(probabilities, labels))
    np.testing.assert_allclose(auroc(-probabilities, labels), 1 - auroc(probabilities, labels))


def test_perfect_predictor():
    labels = np.array([0, 1, 2, 2, 1, 0])
    probabilities = one_hot(labels)
    assert accuracy(probabilities, labels) == mean_confidence(probabilities) == 1
    assert calibration_error(probabilities, labels) == 0
    for metric in (precision, recall, auroc):
        np.testing.assert_array_equal(metric(probabilities, labels), [1, 1, 1])


def test_constant_predictor():
    labels = np.array([0, 0, 1, 2])
    probabilities = np.tile([0.5, 0.3, 0.2], (4, 1))
    assert accuracy(probabilities, labels) == 0.5
    assert mean_confidence(probabilities, labels) == 0.5
    np.testing.assert_array_equal(recall(probabilities, labels), [1, 0, 0])
    np.testing.assert_array_equal(precision(probabilities, labels), [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(auroc(probabilities, labels), [0.5, 0.5, 0.5])  # all ties


def test_missing_classes_give_nan():
    labels = np.array([0, 0, 1])
    probabilities = one_hot([0, 1, 1])
    np.testing.assert_array_equal(recall(probabilities, labels), [0.5, 1, np.nan])
    np.testing.assert_array_equal(precision(probabilities, labels), [1, 0.5, np.nan])
    assert np.isnan(auroc(probabilities, labels)[2]) and not np.isnan(auroc(probabilities, labels)[:2]).any()
    assert np.isnan(auroc(probabilities, np.zeros(3, int))).all()  # one class alone cannot be told from others


def test_macro_f1_by_hand():
    # Class 0: 2 of 3 found and nothing else said so, F1 = 4/5. Class 1: found, once said wrongly, 2/3. Class 2: absent.
    labels = np.array([0, 0, 0, 1])
    assert macro_f1(one_hot([0, 0, 1, 1]), labels) == pytest.approx((4 / 5 + 2 / 3) / 2)
    # Said once and never true, it counts as 0; accuracy does not tell the one from the other.
    assert macro_f1(one_hot([0, 0, 2, 1]), labels) == pytest.approx((4 / 5 + 1 + 0) / 3)


def test_cross_entropy_and_brier_score_at_their_ends():
    labels = np.array([0, 1, 2, 2])
    assert cross_entropy(one_hot(labels), labels) == brier_score(one_hot(labels), labels) == 0
    assert brier_score(one_hot((labels + 1) % 3), labels) == 2
    assert cross_entropy(one_hot((labels + 1) % 3), labels) == pytest.approx(300 * np.log(10))  # large, not infinite
    knows_nothing = np.full((4, 3), 1 / 3)
    assert cross_entropy(knows_nothing, labels) == pytest.approx(np.log(3))
    assert brier_score(knows_nothing, labels) == pytest.approx(2 / 3)


@quick
@given(predictions())
def test_proper_scores_are_best_at_the_true_probabilities(case):
    """The expected score, over labels drawn from ``truth``, of ``truth`` itself and of anything else."""
    other, _ = case
    truth = other[np.random.default_rng(0).permutation(len(other))]
    classes = truth.shape[1]
    for metric in (cross_entropy, brier_score):

        def expected(said, metric=metric):
            each = [[metric(row[None], np.array([c])) for c in range(classes)] for row in said]
            return (truth * np.array(each)).sum()

        assert expected(truth) <= expected(other) + 1e-9


@quick
@given(predictions(), st.integers(1, 20))
def test_points_of_a_reliability_diagram(case, bins):
    probabilities, labels = case
    points = reliability(probabilities, labels, bins)
    assert all(column.shape == (bins,) for column in points) and points.count.sum() == len(labels)
    empty = points.count == 0
    assert np.isnan(points.confidence[empty]).all() and np.isnan(points.accuracy[empty]).all()
    edges = np.arange(bins + 1) / bins
    inside = points.confidence[~empty]
    assert (inside > edges[:-1][~empty] - 1e-9).all() and (inside <= edges[1:][~empty] + 1e-9).all()
    whole = {"confidence": mean_confidence(probabilities), "accuracy": accuracy(probabilities, labels)}
    for name, value in whole.items():
        assert np.nansum(getattr(points, name) * points.count) / len(labels) == pytest.approx(value)


def test_reliability_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.7, 0.3], [0.4, 0.6]])
    points = reliability(probabilities, np.array([0, 1, 0, 0]), bins=5)
    np.testing.assert_array_equal(points.count, [0, 0, 1, 1, 2])
    np.testing.assert_allclose(points.confidence, [np.nan, np.nan, 0.6, 0.7, 0.9])
    np.testing.assert_allclose(points.accuracy, [np.nan, np.nan, 0, 1, 0.5])


@quick
@given(predictions())
def test_risk_and_coverage_are_those_of_the_answered(case):
    """By brute force: answer what is at least as confident as the threshold, and count."""
    probabilities, labels = case
    found = risk_coverage(probabilities, labels)
    confidence, wrong = probabilities.max(1), probabilities.argmax(1) != labels
    np.testing.assert_array_equal(found.threshold, np.sort(confidence)[::-1])
    for coverage, risk, threshold in zip(*found, strict=True):
        answered = confidence >= threshold
        assert coverage == pytest.approx(answered.mean()) and risk == pytest.approx(wrong[answered].mean())
    assert found.coverage[-1] == 1 and found.risk[-1] == pytest.approx(1 - accuracy(probabilities, labels))
    assert (np.diff(found.coverage) >= 0).all()


def test_items_of_equal_confidence_are_answered_together():
    """Else the order of the file would decide the risk: right ones first, or wrong ones first."""
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.8, 0.2], [0.6, 0.4]])
    for labels in ([0, 0, 1, 0], [0, 1, 0, 0]):
        found = risk_coverage(probabilities, np.array(labels))
        np.testing.assert_allclose(found.coverage, [0.25, 0.75, 0.75, 1])
        np.testing.assert_allclose(found.risk, [0, 1 / 3, 1 / 3, 1 / 4])
        np.testing.assert_allclose(found.threshold, [0.9, 0.8, 0.8, 0.6])
    sure = risk_coverage(one_hot([0, 1, 2]), np.array([0, 2, 2]))
    np.testing.assert_allclose(sure.coverage, [1, 1, 1])  # all alike: there is nothing to choose
    np.testing.assert_allclose(sure.risk, [1 / 3] * 3)
