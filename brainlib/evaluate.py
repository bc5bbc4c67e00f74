"""From a trained model to numbers that carry their uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax
from scipy.stats import binomtest
from torch import nn

from brainlib.data.augment import repeat_channels
from brainlib.distributed import Processes
from brainlib.files import DataError
from brainlib.metrics import accuracy, auroc, macro_f1, mean_confidence, recall
from brainlib.modes import evaluating, exact_float32
from brainlib.train import Data, prepare_batch

Metric = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Predictions:
    """Probabilities float64 ``(N, C)``, true labels int64 ``(N,)`` and groups int64 ``(N,)`` of the same items.

    ``networks`` int64 ``(N,)`` says which of several networks answered, as in cross-validation; None if there is one.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    networks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: np.ndarray) -> Predictions:
        """The items at ``index`` (integers or a boolean mask)."""
        networks = None if self.networks is None else self.networks[index]
        return Predictions(self.probabilities[index], self.labels[index], self.groups[index], networks)


class Interval(NamedTuple):
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def predict(model: nn.Module, data: Data, batch_size: int = 256, precision: str = "32-true") -> Predictions:
    """Class probabilities of every item, in evaluation mode; the model's mode and place are put back afterwards.

    Args:
        data: its images are prepared as `brainlib.train.fit` does.
        precision: float32 unless told otherwise, so that a number does not depend on the hardware's short formats.
    """
    fabric = Processes().fabric(precision)  # one process, whatever a cluster has started
    probabilities, labels = [], []
    with evaluating(model, fabric.device), exact_float32(precision):
        wrapped = fabric.setup_module(model, move_to_device=False)
        with torch.inference_mode():
            for index in torch.arange(len(data)).split(batch_size):
                images, targets = prepare_batch(data, index, fabric.device)
                images = repeat_channels(images, data.channels).contiguous(memory_format=torch.channels_last)
                probabilities.append(wrapped(images).cpu().double().softmax(1))
                labels.append(targets.cpu())
    return Predictions(torch.cat(probabilities).numpy(), torch.cat(labels).numpy(), np.asarray(data.groups))


def bootstrap(
    metric: Metric,
    predictions: Predictions | Sequence[Predictions],
    *,
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A metric with its percentile bootstrap interval over groups (Efron 1979, doi 10.1214/aos/1176344552).

    Groups (patients), not slices, are drawn with replacement: slices of one patient resemble each other, and counting
    them as independent makes an interval too narrow. Given the predictions of several seeds, the value is the mean of
    the seeds' values, and each sample draws seeds as well as groups. With S seeds such draws hold (S - 1) / S of the
    variance between seeds, so of two or three seeds the interval is too narrow; with one seed it is about the test set
    alone, and says nothing of what another seed would give.

    Args:
        metric: of (probabilities, labels), a single number.
        predictions: of one model, or a sequence of predictions of several seeds for the same items.

    Raises:
        DataError: no predictions, or runs that are not of the same items.
    """
    return _bootstrap({"": metric}, predictions, samples, level, seed)[""]


def _bootstrap(
    metrics: Mapping[str, Metric],
    predictions: Predictions | Sequence[Predictions],
    samples: int,
    level: float,
    seed: int,
) -> dict[str, Interval]:
    """As `bootstrap`, several metrics on the same draws."""
    runs = _as_runs(predictions)
    drawn: dict[str, list[float]] = {name: [] for name in metrics}
    for items, seeds in _resample(runs, samples, seed):
        parts = [(runs[s].probabilities[items], runs[s].labels[items]) for s in seeds]
        for name, metric in metrics.items():
            drawn[name].append(np.mean([metric(*part) for part in parts]))
    return {
        name: _interval(float(np.mean([metric(run.probabilities, run.labels) for run in runs])), drawn[name], level)
        for name, metric in metrics.items()
    }


def compare(
    metric: Metric,
    first: Predictions | Sequence[Predictions],
    second: Predictions | Sequence[Predictions],
    *,
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The difference ``metric(first) - metric(second)`` with its paired bootstrap interval.

    Each sample scores both on the same drawn groups (and on runs with the same drawn seeds), so that what is hard for
    both cancels. An interval that does not hold 0 says that the difference is more than the luck of the test set.

    Raises:
        DataError: no predictions, or not of the same items and number of seeds on both sides.
    """
    a, b = _as_runs(first), _as_runs(second)
    if len(a) != len(b):
        raise DataError(f"compare() needs the same number of seeds on both sides, not {len(a)} and {len(b)}")
    _as_runs([a[0], b[0]])

    def difference(s: int, items: np.ndarray | slice) -> float:
        labels = a[s].labels[items]
        return metric(a[s].probabilities[items], labels) - metric(b[s].probabilities[items], labels)

    value = float(np.mean([difference(s, slice(None)) for s in range(len(a))]))
    drawn = [np.mean([difference(s, items) for s in seeds]) for items, seeds in _resample(a, samples, seed)]
    return _interval(value, drawn, level)


class McNemar(NamedTuple):
    """Items that only the first, and only the second model gets right, and the exact two-sided p-value."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Predictions, second: Predictions) -> McNemar:
    """Are two models right equally often on the same items? Exact test (McNemar 1947, doi 10.1007/BF02295996).

    Items that both get right or both get wrong say nothing about the difference. Of the others, half should favor each
    model if they were equally good: a fair coin. The test takes items as independent. Slices of one patient are not,
    so its p-value is too small here; `compare`, which draws patients, is the one to trust.

    Raises:
        DataError: the predictions are not for the same items.
    """
    _as_runs([first, second])
    right = [run.probabilities.argmax(1) == run.labels for run in (first, second)]
    a, b = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    return McNemar(a, b, float(binomtest(a, a + b).pvalue) if a + b else 1.0)


def fit_temperature(predictions: Predictions) -> float:
    """The temperature that makes ``softmax(logits / T)`` fit the labels best (Guo et al. 2017, arXiv 1706.04599).

    One number for the whole model, found by minimizing cross entropy on validation items, which must not be those that
    are reported. T > 1 makes an overconfident model humbler. No answer changes, only how sure the model is of it.

    T is sought from 0.05 to 20. Where all answers are right there is no best one, and the result is close to 0.05;
    where all are wrong it is close to 20. Neither is a measurement.
    """
    logits = np.log(np.maximum(predictions.probabilities, 1e-300))
    own = np.take_along_axis(logits, predictions.labels[:, None], 1)[:, 0]

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float((logsumexp(scale * logits, axis=1) - scale * own).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def scale_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """The same predictions with ``softmax(logits / temperature)`` as probabilities."""
    logits = np.log(np.maximum(predictions.probabilities, 1e-300)) / temperature
    return replace(predictions, probabilities=softmax(logits, axis=1))


def _as_runs(predictions: Predictions | Sequence[Predictions]) -> list[Predictions]:
    """Predictions of one or several seeds as a list, checked to be of the same items."""
    runs = [predictions] if isinstance(predictions, Predictions) else list(predictions)
    if not runs or len(runs[0]) == 0:
        raise DataError("there are no predictions to score")
    for run in runs[1:]:
        if not (np.array_equal(run.labels, runs[0].labels) and np.array_equal(run.groups, runs[0].groups)):
            raise DataError("the predictions must be for the same items in the same order")
    return runs


def _resample(runs: list[Predictions], samples: int, seed: int):
    """Yield (items, seeds) ``samples`` times: the items of groups drawn with replacement, and runs drawn likewise."""
    generator = np.random.default_rng(seed)
    order = np.argsort(runs[0].groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(runs[0].groups[order])) + 1)
    for _ in range(samples):
        items = np.concatenate([members[g] for g in generator.integers(len(members), size=len(members))])
        yield items, generator.integers(len(runs), size=len(runs))


def _interval(value: float, drawn: Sequence[float], level: float) -> Interval:
    # A draw may lack a class, and its metric is then nan; such draws are left out.
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def summarize(predictions: Predictions | Sequence[Predictions], classes: Sequence[str]) -> dict[str, Interval]:
    """The metrics that every record of a classifier carries, each with its bootstrap interval.

    ``accuracy``, ``macro_f1``, ``confidence`` (mean largest probability, over all items), ``auroc`` (mean over classes,
    one against the rest) and ``recall_<class>``. The calibration error is left out: resampling biases it upward, so a
    percentile interval around it would not hold what it says.

    Where several networks answered, each its own items as in cross-validation, AUROC ranks the probabilities of all of
    them in one list. It is then no mean of the networks' own, and suffers where one is surer of itself than another.
    """
    metrics: dict[str, Metric] = {
        "accuracy": accuracy,
        "macro_f1": macro_f1,
        "confidence": mean_confidence,
        "auroc": _mean_auroc,
    }
    for c, name in enumerate(classes):
        metrics[f"recall_{name}"] = lambda probabilities, labels, c=c: float(recall(probabilities, labels)[c])
    return _bootstrap(metrics, predictions, samples=2000, level=0.95, seed=0)


def _mean_auroc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that can be told from others; nan where a draw has one class alone."""
    values = auroc(probabilities, labels)
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan
