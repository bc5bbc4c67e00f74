"""Corruptions against the physical models that they state."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from brainlib.data import DataError
from brainlib.data.corrupt import CORRUPTIONS, SEVERITIES, corrupt

KINDS = list(CORRUPTIONS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def soft_images(count: int = 4, channels: int = 1, height: int = 48, width: int = 48) -> torch.Tensor:
    """Soft spots away from the border."""
    generator = seeded(9)
    y = torch.arange(height, dtype=torch.float32)[:, None] - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float32)[None] - (width - 1) / 2
    images = torch.zeros(count, 1, height, width)
    for image in images[:, 0]:
        for _ in range(3):
            a, b = (torch.rand(2, generator=generator) - 0.5) * min(height, width) / 3
            image += 0.3 * torch.exp(-((y - a) ** 2 + (x - b) ** 2) / 18)
    return images.clamp(0, 1).repeat(1, channels, 1, 1)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_follows_rices_distribution(severity):
    sigma = CORRUPTIONS["noise"].strengths[severity - 1]
    for value in (0.0, 0.25):
        noisy = corrupt(torch.full((2, 1, 64, 64), value), "noise", severity, seeded()).flatten().numpy()
        kept = noisy[noisy < 1]
        assert len(kept) > 0.999 * len(noisy)
        assert stats.kstest(kept[::4], stats.rice(value / sigma, scale=sigma).cdf).pvalue > 1e-3


def test_noise_lifts_the_background_but_gaussian_noise_would_not():
    sigma = CORRUPTIONS["noise"].strengths[2]
    noisy = corrupt(torch.zeros(4, 1, 64, 64), "noise", 3, seeded())
    assert noisy.mean() == pytest.approx(sigma * math.sqrt(math.pi / 2), rel=0.02)  # Rayleigh's mean
    assert noisy.min() > 0


@pytest.mark.parametrize("severity", SEVERITIES)
def test_bias_field_is_smooth_positive_and_as_strong_as_stated(severity):
    factor = CORRUPTIONS["bias field"].strengths[severity - 1]
    value = 0.3  # times the largest factor stays below white
    gain = (corrupt(torch.full((8, 1, 64, 48), value), "bias field", severity, seeded(3)) / value)[:, 0].double()
    log = gain.log()
    assert log.abs().amax((1, 2)).numpy() == pytest.approx(math.log(factor), rel=1e-4)
    assert log.mean((1, 2)).numpy() == pytest.approx(0, abs=1e-5)
    # A polynomial of degree 2: its third differences vanish.
    for axis in (1, 2):
        assert log.diff(n=3, dim=axis).abs().max() < 1e-5


def test_bias_field_multiplies():
    images = soft_images(3) / 4
    gain = corrupt(torch.full_like(images, 0.25), "bias field", 4, seeded(1)) / 0.25
    found = corrupt(images, "bias field", 4, seeded(1))
    torch.testing.assert_close(found, images * gain, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [(48, 48), (40, 56)])
def test_rotation_agrees_with_scipy(shape):
    images = soft_images(12, 1, *shape)
    for severity in (2, 5):
        degrees = CORRUPTIONS["rotation"].strengths[severity - 1]
        turned = corrupt(images, "rotation", severity, seeded(5))
        signs = set()
        for image, result in zip(images[:, 0].numpy(), turned[:, 0].numpy(), strict=True):
            wanted = {s: ndimage.rotate(image, s * degrees, reshape=False, order=1) for s in (-1, 1)}
            errors = {s: np.abs(result - w).max() for s, w in wanted.items()}
            assert min(errors.values()) < 0.01 < max(errors.values())
            signs.add(min(errors, key=errors.get))
        assert signs == {-1, 1}  # both directions occur


def test_rotated_corners_are_black():
    turned = corrupt(torch.ones(3, 1, 64, 64), "rotation", 5, seeded())
    assert (turned[:, :, 0, 0] == 0).all() and (turned[:, :, 32, 32] == 1).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_is_a_power(severity):
    gamma = CORRUPTIONS["contrast"].strengths[severity - 1]
    ramp = torch.linspace(0, 1, 64).view(1, 1, 8, 8).repeat(16, 1, 1, 1)
    found = corrupt(ramp, "contrast", severity, seeded())
    darker = torch.isclose(found, ramp**gamma, atol=1e-5).all((1, 2, 3))
    brighter = torch.isclose(found, ramp ** (1 / gamma), atol=1e-5).all((1, 2, 3))
    assert (darker ^ brighter).all() and darker.any() and brighter.any()


@pytest.mark.parametrize("kind", KINDS)
def test_severity_rises(kind):
    images = soft_images(6)
    distances = [(corrupt(images, kind, s, seeded()) - images).abs().mean().item() for s in SEVERITIES]
    assert distances == sorted(distances) and distances[0] > 0
    strengths = CORRUPTIONS[kind].strengths
    assert list(strengths) == sorted(set(strengths)) and len(strengths) == 5
    assert CORRUPTIONS[kind].model and CORRUPTIONS[kind].unit


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_and_floats_agree(kind):
    images = (soft_images(3) * 255).round().to(torch.uint8)
    before = images.clone()
    as_bytes = corrupt(images, kind, 3, seeded(2))
    as_float = corrupt(images.float() / 255, kind, 3, seeded(2))
    assert as_bytes.dtype == torch.uint8 and torch.equal(images, before)
    torch.testing.assert_close(as_bytes.float() / 255, as_float, atol=0.51 / 255, rtol=0)
    assert corrupt(images.half() / 255, kind, 3, seeded(2)).dtype == torch.float16


@pytest.mark.parametrize("kind", KINDS)
def test_any_division_into_batches_gives_the_same(kind):
    images = soft_images(7)
    whole = corrupt(images, kind, 3, seeded(4))
    generator = seeded(4)
    parts = [corrupt(part, kind, 3, generator) for part in images.split([1, 4, 2])]
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_decides_and_the_global_one_is_left_alone(kind):
    images = soft_images(8)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert torch.equal(corrupt(images, kind, 4, seeded(1)), corrupt(images, kind, 4, seeded(1)))
    assert not torch.equal(corrupt(images, kind, 4, seeded(1)), corrupt(images, kind, 4, seeded(2)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_share_a_draw_and_images_do_not(kind):
    images = soft_images(1, 3).repeat(12, 1, 1, 1)
    found = corrupt(images, kind, 3, seeded())
    assert torch.equal(found[:, 0], found[:, 1]) and torch.equal(found[:, 0], found[:, 2])
    assert len({image.numpy().tobytes() for image in found}) > 1


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.sampled_from(KINDS), st.sampled_from(SEVERITIES), st.sampled_from([1, 3]), st.booleans(), st.integers(0, 99))
def test_shape_type_and_range(kind, severity, channels, bytes_, seed):
    images = torch.rand(3, channels, 20, 28, generator=seeded(seed))
    images = (images * 255).to(torch.uint8) if bytes_ else images
    found = corrupt(images, kind, severity, seeded(seed))
    assert found.shape == images.shape and found.dtype == images.dtype
    assert found.float().isfinite().all() and found.min() >= 0 and found.max() <= (255 if bytes_ else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_stays_empty(kind):
    assert corrupt(torch.empty(0, 1, 8, 8), kind, 1).shape == (0, 1, 8, 8)


@pytest.mark.parametrize(
    ("images", "kind", "severity", "message"),
    [
        (torch.zeros(1, 1, 8, 8), "fog", 1, "choose one of noise"),
        (torch.zeros(1, 1, 8, 8), "noise", 6, "from 1 to 5"),
        (torch.zeros(1, 1, 8, 8), "noise", 0, "from 1 to 5"),
        (torch.zeros(1, 1, 8, 8), "noise", 1.5, "from 1 to 5"),
        (torch.zeros(1, 1, 8, 8), "noise", True, "from 1 to 5"),
        (torch.zeros(1, 8, 8), "noise", 1, "shape"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.int64), "noise", 1, "int64"),
        (torch.full((1, 1, 8, 8), 200.0), "noise", 1, "divide bytes by 255"),
        (torch.full((1, 1, 8, 8), math.nan), "noise", 1, r"in \[0, 1\]"),
    ],
)
def test_wrong_arguments_are_named(images, kind, severity, message):
    with pytest.raises(DataError, match=message):
        corrupt(images, kind, severity)
