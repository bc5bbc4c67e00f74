"""Pictures for a page: small enough, and whole."""

import io

import numpy as np
import pytest
from PIL import Image

from brainlib.files import DataError
from brainlib.pictures import to_page


@pytest.mark.parametrize("side", [300, 600])
def test_noise_in_full_color_becomes_a_jpeg_that_can_be_read(side):
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    limit = 0.9 * side**2  # less than a byte a pixel, which PNG needs
    mime, content = to_page(Image.fromarray(noise), limit)
    assert mime == "image/jpeg" and len(content) <= limit
    with Image.open(io.BytesIO(content)) as again:
        assert np.asarray(again.convert("RGB")).shape == noise.shape


def test_few_colors_become_a_png():
    mime, content = to_page(Image.fromarray(np.zeros((50, 60, 3), np.uint8)), 5000)
    assert mime == "image/png" and len(content) < 500


def test_a_picture_that_cannot_be_small_enough_is_refused():
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    with pytest.raises(DataError, match=r"300 × 200 pixels has \d+ kB as the coarsest JPEG, more than 2 kB"):
        to_page(Image.fromarray(noise), 2000)
