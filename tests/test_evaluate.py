"""Predictions do not depend on how they are made, and intervals mean what they say."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import striped_slices, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from brainlib import evaluate
from brainlib.data import DataError
from brainlib.evaluate import (
    Interval,
    McNemar,
    Predictions,
    bootstrap,
    compare,
    fit_temperature,
    mcnemar,
    predict,
    scale_temperature,
    summarize,
)
from brainlib.metrics import (
    accuracy,
    auroc,
    calibration_error,
    cross_entropy,
    macro_f1,
    mean_confidence,
    recall,
)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return tiny_network(dropout=0.5)


# Prediction -----------------------------------------------------------------------------------------------------------


def test_probabilities(network):
    data = striped_slices(37)
    found = predict(network, data, batch_size=16)
    assert found.probabilities.shape == (37, 4) and found.probabilities.dtype == np.float64 and len(found) == 37
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-12)
    np.testing.assert_array_equal(found.labels, data.labels)
    np.testing.assert_array_equal(found.groups, data.groups)
    images = torch.from_numpy(data.images).unsqueeze(1).float().div(255).expand(-1, 3, -1, -1)
    with torch.inference_mode():
        expected = network.eval()(images).softmax(1)
    np.testing.assert_allclose(found.probabilities, expected.numpy(), atol=1e-5)


def test_batch_size_does_not_matter(network):
    data = striped_slices(37)
    whole = predict(network, data).probabilities
    for batch_size in (1, 10, 37):
        np.testing.assert_allclose(predict(network, data, batch_size).probabilities, whole, atol=1e-5)


def test_bfloat16_is_close(network):
    data = striped_slices(37)
    short = predict(network, data, precision="bf16-mixed").probabilities
    np.testing.assert_allclose(short, predict(network, data).probabilities, atol=0.05)
    np.testing.assert_allclose(short.sum(1), 1, atol=1e-12)  # the softmax itself is taken in float64


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(network, training):
    network.train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    predict(network, striped_slices(8))
    assert all(module.training == training for module in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_the_mode_comes_back_after_an_error(network):
    network.train()
    with pytest.raises(RuntimeError):
        predict(network, striped_slices(8, size=4))  # smaller than the kernel
    assert network.training


def test_subset():
    p = noisy(10, 0.5)
    part = p.subset(p.labels == 1)
    assert len(part) == (p.labels == 1).sum() and (part.labels == 1).all()
    np.testing.assert_array_equal(p.subset(np.array([3, 1])).probabilities, p.probabilities[[3, 1]])
    assert p.subset(np.array([3, 1])).networks is None
    several = Predictions(p.probabilities, p.labels, p.groups, np.arange(10) // 2)
    np.testing.assert_array_equal(several.subset(np.array([3, 8])).networks, [1, 4])


# Intervals ------------------------------------------------------------------------------------------------------------


def from_right(right: np.ndarray, groups: np.ndarray | None = None) -> Predictions:
    """Predictions of two classes that are right where ``right`` is true; the true label is always 0."""
    probabilities = np.where(np.asarray(right)[:, None], [0.9, 0.1], [0.2, 0.8])
    groups = np.arange(len(right)) if groups is None else groups
    return Predictions(probabilities, np.zeros(len(right), int), groups)


def noisy(count: int, signal: float, seed: int = 0, base: np.ndarray | None = None) -> Predictions:
    """Three-class predictions from a random score; ``base`` is noise shared with another model."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    logits = signal * np.eye(3)[labels] + rng.normal(size=(count, 3)) * (0.3 if base is not None else 1)
    logits = logits if base is None else logits + base
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Predictions(probabilities, labels, np.arange(count) // 2)


def width(interval: Interval) -> float:
    return interval.high - interval.low


@pytest.mark.parametrize("metric", [accuracy, mean_confidence, calibration_error, lambda p, y: auroc(p, y)[1]])
def test_value_is_the_metric_and_the_interval_holds_it(metric):
    p = noisy(150, 1.0)
    found = bootstrap(metric, p, samples=200)
    assert found.value == metric(p.probabilities, p.labels)
    assert found.low < found.high and (found.low <= found.value <= found.high or metric is calibration_error)


def test_interval_of_a_proportion_in_closed_form():
    """For independent items the standard error is sqrt(p (1 - p) / n)."""
    p = from_right(np.arange(400) % 5 > 0)
    found = bootstrap(accuracy, p, samples=4000)
    error = (0.8 * 0.2 / 400) ** 0.5
    assert found.value == 0.8
    assert found.low == pytest.approx(0.8 - 1.96 * error, abs=0.004)
    assert found.high == pytest.approx(0.8 + 1.96 * error, abs=0.004)
    assert width(bootstrap(accuracy, p, samples=4000, level=0.68)) == pytest.approx(2 * error, rel=0.12)


def test_interval_covers_the_truth_as_often_as_it_says():
    """120 test sets of 50 patients with 1 to 8 slices; a patient's slices share a difficulty. The truth is known."""
    rng = np.random.default_rng(0)
    truth, covered, naive = 0.75, 0, 0
    for _ in range(120):
        groups = np.repeat(np.arange(50), rng.integers(1, 9, 50))
        chance = rng.beta(1.5, 0.5, 50)  # mean 0.75
        p = from_right(rng.random(len(groups)) < chance[groups], groups)
        interval = bootstrap(accuracy, p, samples=200, level=0.9)
        covered += interval.low <= truth <= interval.high
        alone = bootstrap(accuracy, Predictions(p.probabilities, p.labels, np.arange(len(p))), samples=200, level=0.9)
        naive += alone.low <= truth <= alone.high
    assert 0.8 <= covered / 120 <= 0.97
    assert naive / 120 < covered / 120 - 0.08  # what counting slices as independent would have claimed


def test_slices_of_one_patient_count_as_one():
    """Ten equal slices for each patient: the interval of the patients, sqrt(10) wider than that of the slices."""
    right = np.repeat(np.arange(60) % 4 > 0, 10)
    correlated = bootstrap(accuracy, from_right(right, np.repeat(np.arange(60), 10)))
    independent = bootstrap(accuracy, from_right(right))
    one_each = bootstrap(accuracy, from_right(np.arange(60) % 4 > 0))
    assert width(correlated) / width(independent) == pytest.approx(10**0.5, rel=0.15)
    assert correlated == one_each


def test_group_numbers_and_order_are_only_names():
    groups = np.repeat(np.arange(40), 3)
    right = np.random.default_rng(0).random(120) < 0.7
    plain = bootstrap(accuracy, from_right(right, groups), samples=100)
    assert bootstrap(accuracy, from_right(right, 5 * groups - 1000), samples=100) == plain
    order = np.random.default_rng(1).permutation(120)
    assert bootstrap(accuracy, from_right(right[order], groups[order]), samples=100) == pytest.approx(plain)


def test_the_seed_decides_the_draws():
    p = noisy(60, 1.0)
    assert bootstrap(accuracy, p, samples=100) == bootstrap(accuracy, p, samples=100)
    assert bootstrap(accuracy, p, samples=100, seed=1) != bootstrap(accuracy, p, samples=100)


def test_several_seeds():
    runs = [noisy(90, signal, seed) for seed, signal in enumerate((0.6, 1.0, 1.6))]
    found = bootstrap(accuracy, runs)
    values = [accuracy(run.probabilities, run.labels) for run in runs]
    assert found.value == pytest.approx(np.mean(values)) and found.low < found.value < found.high
    same_each_time = bootstrap(accuracy, [runs[1]] * 3)
    assert same_each_time.value == pytest.approx(values[1])
    assert width(same_each_time) == pytest.approx(width(bootstrap(accuracy, runs[1])), rel=0.1)
    assert width(found) > 1.1 * width(same_each_time)  # seeds that differ add to the uncertainty


def test_a_perfect_model_has_no_width():
    assert bootstrap(accuracy, from_right(np.ones(30, bool)), samples=50) == Interval(1, 1, 1)


def test_draws_that_lack_a_class_are_left_out():
    """One patient in twenty has the class: a third of the draws have none, and their recall is undefined."""
    labels = (np.arange(20) == 0).astype(int)
    p = Predictions(np.eye(2)[labels], labels, np.arange(20))
    assert bootstrap(lambda p, y: recall(p, y)[1], p, samples=200) == Interval(1, 1, 1)


def test_interval_reads_well():
    assert str(Interval(0.98765, 0.9, 1)) == "0.988 [0.900, 1.000]"


# Comparison -----------------------------------------------------------------------------------------------------------


def test_pairing_cancels_what_is_hard_for_both():
    base = 2 * np.random.default_rng(5).normal(size=(240, 3))
    first, second = noisy(240, 1.2, 1, base), noisy(240, 1.0, 2, base)
    found = compare(accuracy, first, second)
    a, b = bootstrap(accuracy, first), bootstrap(accuracy, second)
    assert found.value == pytest.approx(a.value - b.value)
    assert found.low < found.value < found.high
    assert width(found) < 0.7 * (width(a) ** 2 + width(b) ** 2) ** 0.5


def test_comparison_is_antisymmetric_and_zero_with_itself():
    first, second = noisy(90, 1.2, 1), noisy(90, 0.8, 2)
    there, back = compare(accuracy, first, second, samples=100), compare(accuracy, second, first, samples=100)
    assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))
    assert compare(accuracy, first, first, samples=50) == Interval(0, 0, 0)


def test_a_clear_difference_is_found_and_none_is_not():
    good, bad = noisy(300, 2.5, 1), noisy(300, 0.5, 2)
    assert compare(accuracy, good, bad, samples=300).low > 0
    again = noisy(300, 0.5, 3)
    found = compare(accuracy, again, bad, samples=300)
    assert found.low < 0 < found.high


def test_comparison_of_several_seeds():
    first = [noisy(90, 1.5, seed) for seed in (1, 2, 3)]
    second = [noisy(90, 0.7, seed) for seed in (4, 5, 6)]
    found = compare(accuracy, first, second, samples=200)
    means = [np.mean([accuracy(run.probabilities, run.labels) for run in runs]) for runs in (first, second)]
    assert found.value == pytest.approx(means[0] - means[1])


def test_what_cannot_be_compared():
    p = noisy(30, 1.0)
    with pytest.raises(DataError, match="same items"):
        compare(accuracy, p, noisy(33, 1.0))
    with pytest.raises(DataError, match="same items"):  # equal labels, other patients
        compare(accuracy, p, replace(p, groups=p.groups[::-1]))
    with pytest.raises(DataError, match="same number of seeds"):
        compare(accuracy, [p, p], p)
    with pytest.raises(DataError, match="no predictions"):
        compare(accuracy, [], [])
    with pytest.raises(DataError, match="no predictions"):
        bootstrap(accuracy, [])
    with pytest.raises(DataError, match="no predictions"):
        bootstrap(accuracy, p.subset(np.zeros(30, bool)))
    with pytest.raises(DataError, match="same items in the same order"):
        bootstrap(accuracy, [p, p.subset(np.arange(30)[::-1])])


def test_all_metrics_of_a_summary_share_their_draws(monkeypatch):
    """And get the numbers that each would get alone."""
    runs = [noisy(90, 1.5, seed) for seed in (1, 2)]
    classes = [str(c) for c in range(runs[0].probabilities.shape[1])]
    drawn = []
    resample = evaluate._resample
    monkeypatch.setattr(evaluate, "_resample", lambda *arguments: drawn.append(1) or resample(*arguments))
    found = summarize(runs, classes)
    assert len(drawn) == 1
    assert found["accuracy"] == bootstrap(accuracy, runs) and found["macro_f1"] == bootstrap(macro_f1, runs)
    assert found["confidence"] == bootstrap(mean_confidence, runs)
    assert found["recall_1"] == bootstrap(lambda p, y: float(recall(p, y)[1]), runs)


def test_a_data_set_prepares_its_images_itself(network):
    """As `fit` is given them, so `predict` is."""
    data = striped_slices(8)

    class Negative:
        groups, channels, fingerprint = data.groups, 3, data.fingerprint
        batch, __len__ = data.batch, lambda self: len(data)

        def prepare(self, images, targets, index):
            return 1 - images.float() / 255, targets

    turned = replace(data, images=255 - data.images)
    np.testing.assert_allclose(
        predict(network, Negative()).probabilities, predict(network, turned).probabilities, atol=1e-6
    )


# McNemar --------------------------------------------------------------------------------------------------------------


def exact_p(a: int, b: int) -> float:
    """Two-sided: how likely a fair coin falls at least as unevenly as a to b."""
    tail = sum(math.comb(a + b, k) for k in range(min(a, b) + 1)) / 2 ** (a + b)
    return min(1.0, 2 * tail)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (0, 5), (3, 9), (10, 10), (2, 30), (41, 17)])
def test_mcnemar_in_closed_form(a, b):
    first = from_right(np.repeat([True, False, True, False], [a, b, 12, 7]))
    second = from_right(np.repeat([False, True, True, False], [a, b, 12, 7]))
    found = mcnemar(first, second)
    assert isinstance(found, McNemar) and (found.only_first, found.only_second) == (a, b)
    assert found.p == pytest.approx(exact_p(a, b)) and 0 < found.p <= 1
    back = mcnemar(second, first)
    assert (back.only_first, back.only_second, back.p) == (b, a, pytest.approx(found.p))


def test_mcnemar_holds_its_level():
    """Of 400 pairs of equally good models, one in twenty or fewer is called different (the test is conservative)."""
    rng = np.random.default_rng(0)
    called = [mcnemar(*(from_right(rng.random(150) < 0.8) for _ in range(2))).p <= 0.05 for _ in range(400)]
    assert 0.01 < np.mean(called) < 0.07


def test_mcnemar_needs_the_same_items():
    p = from_right(np.ones(5, bool))
    with pytest.raises(DataError, match="same items"):
        mcnemar(p, from_right(np.ones(6, bool)))
    with pytest.raises(DataError, match="same items"):
        mcnemar(p, from_right(np.ones(5, bool), groups=np.arange(5)[::-1]))


# Temperature ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("confidence", "right"), [(0.99, 80), (0.9, 70), (0.6, 90), (0.8, 80)])
def test_temperature_of_two_classes_in_closed_form(confidence, right):
    """One confidence for all: it should be the accuracy, so T = logit(confidence) / logit(accuracy)."""
    probabilities = np.tile([confidence, 1 - confidence], (100, 1))
    p = Predictions(probabilities, (np.arange(100) >= right).astype(int), np.arange(100))
    found = fit_temperature(p)
    logit = [math.log(q / (1 - q)) for q in (confidence, right / 100)]
    assert found == pytest.approx(logit[0] / logit[1], rel=1e-3)
    scaled = scale_temperature(p, found)
    assert mean_confidence(scaled.probabilities) == pytest.approx(right / 100, abs=1e-3)
    assert calibration_error(scaled.probabilities, p.labels) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5, 6.0])
def test_a_known_temperature_is_found_again(temperature):
    """Labels are drawn from probabilities, which are then sharpened or flattened by a known number."""
    rng = np.random.default_rng(0)
    true = rng.dirichlet([0.6] * 4, 20_000)
    labels = (true.cumsum(1) < rng.random((20_000, 1))).sum(1).clip(max=3)
    honest = Predictions(true, labels, np.arange(20_000))
    distorted = scale_temperature(honest, 1 / temperature)
    found = fit_temperature(distorted)
    assert found == pytest.approx(temperature, rel=0.03)
    scaled = scale_temperature(distorted, found)
    assert cross_entropy(scaled.probabilities, labels) <= cross_entropy(true, labels)
    for other in (0.9 * found, 1.1 * found):
        worse = scale_temperature(distorted, other)
        assert cross_entropy(worse.probabilities, labels) > cross_entropy(scaled.probabilities, labels)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(0.1, 10))
def test_scaling_by_a_temperature(seed, first, second):
    p = noisy(30, 2.0, seed)
    p = Predictions(p.probabilities, p.labels, p.groups, np.arange(30) % 5)
    scaled = scale_temperature(p, first)
    np.testing.assert_array_equal(scaled.probabilities.argmax(1), p.probabilities.argmax(1))
    np.testing.assert_allclose(scaled.probabilities.sum(1), 1)
    powers = p.probabilities ** (1 / first)
    np.testing.assert_allclose(scaled.probabilities, powers / powers.sum(1, keepdims=True), atol=1e-12)
    for name in ("labels", "groups", "networks"):
        np.testing.assert_array_equal(getattr(scaled, name), getattr(p, name))
    twice, at_once = scale_temperature(scaled, second), scale_temperature(p, first * second)
    np.testing.assert_allclose(twice.probabilities, at_once.probabilities, atol=1e-9)
    np.testing.assert_allclose(scale_temperature(p, 1).probabilities, p.probabilities)
    humbler = mean_confidence(scaled.probabilities) < mean_confidence(p.probabilities)
    assert humbler == (first > 1) or math.isclose(first, 1, abs_tol=1e-9)


def test_temperature_of_probabilities_that_are_0():
    probabilities = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    p = Predictions(probabilities, np.array([0, 1, 1]), np.arange(3))
    found = fit_temperature(p)
    assert 1 < found <= 20 + 1e-6
    assert np.isfinite(scale_temperature(p, found).probabilities).all()


# Summary --------------------------------------------------------------------------------------------------------------


def test_summary_has_the_metrics_of_a_record():
    p = noisy(90, 1.0)
    found = summarize(p, ("a", "b", "c"))
    names = ["accuracy", "macro_f1", "confidence", "auroc", "recall_a", "recall_b", "recall_c"]
    assert list(found) == names
    probabilities, labels = p.probabilities, p.labels
    expected = [accuracy(probabilities, labels), macro_f1(probabilities, labels), mean_confidence(probabilities)]
    expected += [auroc(probabilities, labels).mean(), *recall(probabilities, labels)]
    assert [interval.value for interval in found.values()] == pytest.approx(expected)
    assert all(interval.low < interval.value < interval.high for interval in found.values())


@pytest.mark.filterwarnings("error")
def test_summary_of_few_patients():
    """Most draws lack a class and many have one alone; what is undefined in them is left out, without a warning."""
    labels = np.array([0, 0, 1])
    found = summarize(Predictions(np.eye(2)[labels], labels, np.array([0, 1, 2])), ("a", "b"))
    assert found["auroc"] == found["recall_b"] == found["accuracy"] == Interval(1, 1, 1)
