"""Augmentation against the formulas it stands for, and its random draws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from brainlib.data import Augment, DataError, repeat_channels, to_input
from brainlib.data.augment import to_device
from brainlib.data.augment_masks import SegmentationAugment
from brainlib.data.brats import standardize

NOTHING = Augment(flip=0, rotation=0, brightness=0, contrast=0)


def smooth_images(count: int = 4, channels: int = 1, size: int = 48, seed: int = 0) -> torch.Tensor:
    """Soft spots away from the border, so that resampling and corners cost little."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    images = torch.zeros(count, channels, size, size)
    for image in images.flatten(0, 1):
        for _ in range(3):
            y, x = (torch.rand(2, generator=generator) - 0.5) * size / 3
            image += 0.3 * torch.exp(-((axis[:, None] - y) ** 2 + (axis[None] - x) ** 2) / 18)
    return images


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_to_input_maps_bytes_to_the_unit_interval():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    torch.testing.assert_close(to_input(images), torch.tensor([0, 0.2, 1]).view(1, 1, 1, 3))
    assert to_input(images, 3).shape == (1, 3, 1, 3) and to_input(images).dtype == torch.float32
    assert images.flatten().tolist() == [0, 51, 255]  # the bytes are left alone


def test_to_input_refuses_what_is_no_bytes_and_leaves_it_alone():
    images = torch.ones(1, 1, 2, 2)
    with pytest.raises(DataError, match="images must be uint8, 0 to 255, not torch.float32"):
        to_input(images)
    assert (images == 1).all()


def test_channels_are_equal_and_not_copied():
    images = torch.rand(2, 1, 4, 4)
    repeated = repeat_channels(images, 3)
    assert all(torch.equal(repeated[:, c : c + 1], images) for c in range(3))
    assert repeated.data_ptr() == images.data_ptr()
    assert repeat_channels(images, None) is images and repeat_channels(repeated, 3) is repeated


def test_nothing_asked_for_nothing_done():
    images = torch.rand(5, 3, 32, 40)
    torch.testing.assert_close(NOTHING(images.clone(), seeded(0)), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(3, 1, 32, 32), (2, 3, 24, 40)])
def test_certain_flip_mirrors_left_and_right(shape):
    images = torch.rand(shape)
    flipped = Augment(flip=1, rotation=0, brightness=0, contrast=0)(images.clone(), seeded(0))
    torch.testing.assert_close(flipped, images.flip(-1), atol=1e-5, rtol=0)


def test_rotation_agrees_with_scipy():
    images = smooth_images(16)
    largest = 30.0
    turned = Augment(flip=0, rotation=largest, brightness=0, contrast=0)(images.clone(), seeded(7))
    angles = (2 * torch.rand(4, 16, generator=seeded(7))[0] - 1) * largest  # the first row of the draws
    assert angles.abs().max() > 15
    for image, result, angle in zip(images[:, 0].numpy(), turned[:, 0].numpy(), angles.tolist(), strict=True):
        expected = ndimage.rotate(image, angle, reshape=False, order=1)
        # Both are bilinear; they differ by how the last pixels before the border are read.
        np.testing.assert_allclose(result, expected, atol=0.01)
        if abs(angle) > 5:
            assert np.abs(result - ndimage.rotate(image, -angle, reshape=False, order=1)).max() > 0.05


def test_flip_follows_rotation_as_one_map():
    images = smooth_images(8)
    turned = Augment(flip=0, rotation=20, brightness=0, contrast=0)(images.clone(), seeded(3))
    both = Augment(flip=1, rotation=20, brightness=0, contrast=0)(images.clone(), seeded(3))
    torch.testing.assert_close(both, turned.flip(-1), atol=1e-5, rtol=0)


def test_corners_of_a_rotated_image_are_black():
    turned = Augment(flip=0, rotation=10, brightness=0, contrast=0)(torch.ones(8, 1, 64, 64), seeded(1))
    angles = (2 * torch.rand(4, 8, generator=seeded(1))[0] - 1) * 10
    for image, angle in zip(turned[:, 0], angles.tolist(), strict=True):
        assert image[16:48, 16:48].min() > 0.999
        if abs(angle) > 4:
            assert image[0, 0] == image[-1, -1] == 0


def test_brightness_and_contrast_by_the_formulas():
    """Brightness multiplies; contrast moves away from or toward the mean gray value of the image."""
    images = torch.rand(6, 1, 20, 20)
    factors = 2 * torch.rand(4, 6, generator=seeded(5)) - 1
    found = Augment(flip=0, rotation=0, brightness=0.4, contrast=0.5)(images.clone(), seeded(5))
    for i, image in enumerate(images):
        bright = (image * (1 + 0.4 * factors[2, i])).clamp(0, 1)
        contrast = 1 + 0.5 * factors[3, i]
        expected = (contrast * bright + (1 - contrast) * bright.mean()).clamp(0, 1)
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    st.floats(0, 1), st.floats(0, 180), st.floats(0, 1), st.floats(0, 1), st.sampled_from([1, 3]), st.integers(0, 99)
)
def test_range_and_shape(flip, rotation, brightness, contrast, channels, seed):
    images = torch.rand(3, channels, 16, 24, generator=seeded(seed))
    result = Augment(flip, rotation, brightness, contrast)(images, seeded(seed))
    assert result.shape == (3, channels, 16, 24) and result.dtype == torch.float32
    assert result.min() >= 0 and result.max() <= 1 and result.isfinite().all()


def test_the_generator_decides():
    images = smooth_images()
    assert torch.equal(Augment()(images.clone(), seeded(1)), Augment()(images.clone(), seeded(1)))
    assert not torch.equal(Augment()(images.clone(), seeded(1)), Augment()(images.clone(), seeded(2)))
    generator = seeded(1)
    assert not torch.equal(Augment()(images.clone(), generator), Augment()(images.clone(), generator))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Augment()(images.clone(), seeded(1))
    assert torch.equal(torch.get_rng_state(), before)  # the global one is not touched


def test_each_image_has_its_own_draw_and_its_channels_share_it():
    images = smooth_images(1).repeat(6, 3, 1, 1)
    results = Augment()(images, seeded(0))
    assert torch.equal(results[:, 0], results[:, 1]) and torch.equal(results[:, 0], results[:, 2])
    assert len({result.numpy().tobytes() for result in results}) == 6


def test_half_of_the_images_are_flipped():
    images = torch.zeros(400, 1, 8, 8)
    images[..., :4] = 1
    flipped = Augment(flip=0.5, rotation=0, brightness=0, contrast=0)(images, seeded(0))[:, 0, 0, 0] < 0.5
    assert 160 < int(flipped.sum()) < 240  # four standard deviations


def center_and_spread(image: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Center of brightness (row, column) and root mean square distance from it, in pixels."""
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in image.shape), indexing="ij")
    places = torch.stack([rows, columns])
    center = (image * places).sum((1, 2)) / image.sum()
    return center, float((image * ((places - center[:, None, None]) ** 2).sum(0)).sum() / image.sum()) ** 0.5


def only(**chosen: float) -> Augment:
    return Augment(**{"flip": 0, "rotation": 0, "brightness": 0, "contrast": 0} | chosen)


def test_zoom_scales_the_distances_by_the_factor_drawn():
    images = smooth_images(12, size=64)
    augment = only(zoom=0.3)
    draw = augment.draw(12, seeded(3))
    zoomed = augment(images.clone(), draw=draw)
    for i in range(12):
        ratio = center_and_spread(zoomed[i, 0])[1] / center_and_spread(images[i, 0])[1]
        assert ratio == pytest.approx(1 + 0.3 * (2 * draw[4, i].item() - 1), rel=0.02)


def test_shift_moves_by_the_share_of_the_side_drawn():
    images = smooth_images(12, size=64)
    augment = only(shift=0.1)
    draw = augment.draw(12, seeded(4))
    moved = augment(images.clone(), draw=draw)
    for i in range(12):
        step = center_and_spread(moved[i, 0])[0] - center_and_spread(images[i, 0])[0]
        expected = -64 * 0.1 * (2 * draw[[6, 5], i] - 1)  # what comes from further right stands further left
        torch.testing.assert_close(step, expected, atol=0.15, rtol=0)
        assert step.abs().max() <= 6.4 + 0.15


@given(probability=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_erasing_blackens_one_rectangle_of_the_size_it_says(probability, seed):
    images = torch.ones(30, 1, 64, 48)
    erased = only(erase=probability)(images, seeded(seed))[:, 0] < 0.5
    hit = erased.flatten(1).any(1)
    assert hit.all() if probability == 1 else not hit.any() if probability == 0 else 0 < hit.sum() < 30
    for hole in erased[hit]:
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        height, width = len(rows), len(columns)
        assert (
            hole.sum() == height * width and rows[-1] - rows[0] + 1 == height and columns[-1] - columns[0] + 1 == width
        )
        assert 64 / 8 - 1 <= height <= 64 * 3 / 8 + 1 and 48 / 8 - 1 <= width <= 48 * 3 / 8 + 1


def test_what_is_off_changes_neither_the_draws_nor_the_name():
    assert repr(Augment()) == "Augment(flip=0.5, rotation=10.0, brightness=0.2, contrast=0.2)"
    assert repr(Augment(zoom=0.1)) == "Augment(flip=0.5, rotation=10.0, brightness=0.2, contrast=0.2, zoom=0.1)"
    assert torch.equal(Augment().draw(7, seeded(0)), torch.rand(4, 7, generator=seeded(0)))
    assert Augment(erase=0.1).draw(7).shape == (12, 7)


def test_few_numbers_go_to_a_gpu_without_waiting(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, **how: calls.append((str(device), how)) or self)
    to_device(torch.zeros(2), torch.device("cuda"))
    to_device(torch.zeros(2), torch.device("cpu"))
    assert calls == ["pinned", ("cuda", {"non_blocking": True}), ("cpu", {})]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU, or it was not asked for")
def test_augmentation_and_normalization_never_wait_for_the_gpu():
    images, masks = torch.rand(4, 4, 32, 32, device="cuda"), torch.rand(4, 2, 32, 32, device="cuda") > 0.5
    every = SegmentationAugment(spatial=1, noisy=1, blur=1)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        every(images, masks)
        Augment(zoom=0.1, shift=0.1, erase=1.0)(images)
        standardize(images, torch.zeros(4, 4), torch.ones(4, 4))
    finally:
        torch.cuda.set_sync_debug_mode(before)
