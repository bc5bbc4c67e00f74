"""Metrics of classification, on arrays: ``probabilities`` float ``(N, C)`` and ``labels`` int ``(N,)``.

Each is a plain function of the two, so that `brainlib.evaluate.bootstrap` can resample any of them. Per-class values
are nan for a class that does not occur (recall, AUROC) or is never predicted (precision): an average over such a class
would be made up.

The metrics of segmentation, on masks, are in `brainlib.segmentation`; those whose names do not stand for a metric of
classification as well can be had from here too: `dice`, `iou`, `hausdorff95`, `surface_dice` and so on.

For teaching and research, not a medical device.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from brainlib.segmentation import (
    Counts,
    dice,
    false_negative_rate,
    false_positive_rate,
    hausdorff95,
    iou,
    lesion_wise_dice,
    score_volume,
    surface_dice,
    surface_distances,
)

__all__ = [
    "Counts",
    "Reliability",
    "RiskCoverage",
    "accuracy",
    "auroc",
    "brier_score",
    "calibration_error",
    "confusion_matrix",
    "cross_entropy",
    "dice",
    "false_negative_rate",
    "false_positive_rate",
    "hausdorff95",
    "iou",
    "lesion_wise_dice",
    "macro_f1",
    "mean_confidence",
    "precision",
    "recall",
    "reliability",
    "risk_coverage",
    "score_volume",
    "surface_dice",
    "surface_distances",
]


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Share of items whose most probable class is the true one."""
    return float((probabilities.argmax(1) == labels).mean())


def mean_confidence(probabilities: np.ndarray, labels: np.ndarray | None = None) -> float:
    """Mean of the largest probability, over all items (``labels`` are accepted and not used)."""
    return float(probabilities.max(1).mean())


def confusion_matrix(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts, int64 ``(C, C)``: row = true class, column = predicted class."""
    classes = probabilities.shape[1]
    return np.bincount(labels * classes + probabilities.argmax(1), minlength=classes**2).reshape(classes, classes)


def recall(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """TP / (TP + FN) of each class, float ``(C,)``: of those who have it, how many are found."""
    matrix = confusion_matrix(probabilities, labels)
    return _ratio(matrix.diagonal(), matrix.sum(1))


def precision(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """TP / (TP + FP) of each class, float ``(C,)``: of those who are told so, how many have it."""
    matrix = confusion_matrix(probabilities, labels)
    return _ratio(matrix.diagonal(), matrix.sum(0))


def auroc(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class against the rest, float ``(C,)``.

    The chance that a random member of the class gets a higher probability for it than a random non-member, ties
    counted half (Hanley and McNeil 1982, doi 10.1148/radiology.143.1.7063747), computed from ranks.
    """
    values = np.full(probabilities.shape[1], np.nan)
    for c in range(probabilities.shape[1]):
        positive = labels == c
        p, n = int(positive.sum()), int((~positive).sum())
        if p and n:
            ranks = rankdata(probabilities[:, c])
            values[c] = (ranks[positive].sum() - p * (p + 1) / 2) / (p * n)
    return values


def macro_f1(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN); classes that neither occur nor are predicted are left out."""
    matrix = confusion_matrix(probabilities, labels)
    return float(np.nanmean(_ratio(2.0 * matrix.diagonal(), matrix.sum(0) + matrix.sum(1))))


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of ``-log p`` of the true class, in nats; the score that temperature scaling minimizes."""
    true = np.take_along_axis(probabilities, labels[:, None], 1)
    return float(-np.log(np.maximum(true, 1e-300)).mean())


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance between the probabilities and the truth as 0 and 1, summed over classes, in [0, 2].

    Brier 1950, Monthly Weather Review 78:1-3. Unlike accuracy it is best when the probabilities are the true ones.
    """
    truth = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - truth) ** 2).sum(1).mean())


class Reliability(NamedTuple):
    """Of the items in each of ``bins`` equal intervals of confidence; nan where there are none."""

    confidence: np.ndarray  # float (bins,), the mean
    accuracy: np.ndarray  # float (bins,)
    count: np.ndarray  # int (bins,)


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> Reliability:
    """Confidence beside accuracy, interval by interval: the points of a reliability diagram.

    Intervals are open on the left and closed on the right (Guo et al. 2017, arXiv 1706.04599, section 2).
    """
    confidence = probabilities.max(1)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    mean = _ratio(np.bincount(place, confidence, minlength=bins), count)
    right = _ratio(np.bincount(place, probabilities.argmax(1) == labels, minlength=bins), count)
    return Reliability(mean, right, count)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of the predicted class (Guo et al. 2017, arXiv 1706.04599, equation 3).

    The mean distance between confidence and accuracy over the intervals of `reliability`, weighted by the items in
    them. It lies in [0, 1]; 0 means that confidence tells how often the model is right.
    """
    points = reliability(probabilities, labels, bins)
    return float(np.nansum(np.abs(points.accuracy - points.confidence) * points.count) / len(labels))


class RiskCoverage(NamedTuple):
    """A model that answers only when it is confident: float ``(N,)`` each, from the most confident item on."""

    coverage: np.ndarray  # share of items that it answers
    risk: np.ndarray  # share of wrong answers among them
    threshold: np.ndarray  # smallest confidence that is still answered


def risk_coverage(probabilities: np.ndarray, labels: np.ndarray) -> RiskCoverage:
    """Risk against coverage as the required confidence falls (El-Yaniv and Wiener 2010, JMLR 11:1605-1641).

    Items of equal confidence are answered together or not at all: each gets the risk and coverage of the last of them.
    """
    confidence = probabilities.max(1)
    order = np.argsort(-confidence, kind="stable")
    threshold = confidence[order]
    last = np.searchsorted(-threshold, -threshold, side="right")  # items answered at this threshold
    errors = np.cumsum(probabilities.argmax(1)[order] != labels[order])
    return RiskCoverage(last / len(labels), errors[last - 1] / last, threshold)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, nan where whole is 0."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
