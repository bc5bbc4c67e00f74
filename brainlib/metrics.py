"""Metrics of classification, on arrays: ``probabilities`` float ``(N, C)`` and ``labels`` int ``(N,)``.

Each is a plain function of the two, so that `brainlib.evaluate.bootstrap` can resample any of them. Per-class values
are nan for a class that does not occur (recall, AUROC) or is never predicted (precision): an average over such a class
would be made up. For teaching and research, not a medical device.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


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


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of the predicted class (Guo et al. 2017, arXiv 1706.04599, equation 3).

    Items are put into ``bins`` equal intervals of confidence; the result is the mean distance between confidence and
    accuracy in a bin, weighted by the items in it. It lies in [0, 1]; 0 means that confidence tells how often the
    model is right.
    """
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    # Intervals are open on the left and closed on the right, as in the paper.
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(place, correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, nan where whole is 0."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
