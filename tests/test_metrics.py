"""Metrics against closed forms, against scikit-learn and torchmetrics, and by their properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as judge
from torchmetrics.functional.classification import multiclass_calibration_error

from brainlib.metrics import (
    accuracy,
    auroc,
    calibration_error,
    confusion_matrix,
    mean_confidence,
    precision,
    recall,
)

quick = settings(deadline=None, max_examples=40, derandomize=True)
ALL = [accuracy, mean_confidence, confusion_matrix, precision, recall, auroc, calibration_error]


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
