"""The physics of the phantom: signal equations, the published table, noise."""

import math

import numpy as np
import pytest

from brainlib.data.phantom import (
    SEQUENCES,
    TISSUES,
    compose,
    inversion_recovery,
    nulling_ti,
    relative_signals,
    relaxation,
    rician,
    signal,
    spin_echo,
)

# Worked out by hand from the tissue table and the equations, with white matter = 1.
EXPECTED = {
    "t1": {"gray matter": 0.87, "csf": 0.44, "necrosis": 0.68, "edema": 0.91, "enhancing tumor": 0.81, "fat": 2.17},
    "t1c": {"enhancing tumor": 2.22, "meningioma": 2.07, "adenoma": 1.89, "necrosis": 0.66, "dura": 1.17},
    "t2": {"gray matter": 1.58, "csf": 3.54, "edema": 2.37},
    "flair": {"gray matter": 1.30, "csf": 0, "edema": 1.97, "enhancing tumor": 1.33, "necrosis": 1.47},
}


@pytest.mark.parametrize("sequence", EXPECTED)
def test_signals_relative_to_white_matter(sequence):
    found = relative_signals(sequence)
    assert found["white matter"] == 1
    for tissue, value in EXPECTED[sequence].items():
        assert found[tissue] == pytest.approx(value, abs=0.01), tissue


def test_spin_echo_limits():
    assert spin_echo(1000, 80, 0.7, tr=1e9, te=0) == pytest.approx(0.7)  # long TR, short TE: proton density alone
    assert spin_echo(1000, 80, 0.7, tr=1000 * math.log(2), te=80 * math.log(2)) == pytest.approx(0.7 / 4)


def test_flair_nulls_the_fluid_and_nothing_else():
    assert SEQUENCES["flair"].ti == pytest.approx(2445, abs=1)
    for t1 in (300.0, 4200.0):
        assert inversion_recovery(t1, 1e9, 1, 9000, 0, nulling_ti(t1, 9000)) == pytest.approx(0, abs=1e-9)
    brain = ("gray matter", "white matter", "edema", "enhancing tumor", "non-enhancing tumor", "necrosis")
    assert min(relative_signals("flair")[name] for name in brain) >= 1


def test_gadolinium_shortens_t1_and_t2():
    t1, t2 = relaxation(TISSUES["gray matter"], 1.0)
    assert (1000 / t1 - 1000 / 1400, 1000 / t2 - 1000 / 99) == pytest.approx((4.5, 5.5))


def test_agent_counts_only_where_it_was_given():
    assert signal("meningioma", "t1", gadolinium=5) == signal("meningioma", "t1")
    assert signal("meningioma", "t1c", gadolinium=0) == signal("meningioma", "t1")
    assert signal("meningioma", "t1c") > 2 * signal("meningioma", "t1")


def test_rician_noise_of_an_empty_image_is_rayleigh():
    sigma = 0.03
    noise = rician(np.zeros((400, 400), np.float32), sigma, np.random.default_rng(0))
    assert noise.min() >= 0
    # Standard error of the mean over 160,000 pixels: 0.0016 sigma.
    assert noise.mean() == pytest.approx(sigma * math.sqrt(math.pi / 2), abs=0.01 * sigma)
    assert (noise**2).mean() == pytest.approx(2 * sigma**2, rel=0.02)


def test_painting_one_hot_values_gives_fractions():
    cover = np.array([0, 0.25, 1], np.float32)
    layers = [("fat", np.ones(3, np.float32)), ("csf", cover), ("fat", np.array([0, 0.5, 0], np.float32))]
    fractions = compose(layers, {"fat": [1, 0], "csf": [0, 1]}, 3)
    assert fractions == pytest.approx(np.array([[1, 0.875, 0], [0, 0.125, 1]]))
