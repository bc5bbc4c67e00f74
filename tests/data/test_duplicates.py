"""Copies are found under flips, turns, other brightness and compression, and different pictures are not joined."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from brainlib.data.duplicates import SYMMETRIES, near_duplicates, orientation, perceptual_hash, thumbnail, turn


def picture(seed: int, size: int = 96) -> np.ndarray:
    """Smooth noise with blobs of many sizes, uint8 ``(size, size)``."""
    rng = np.random.default_rng(seed)
    noise = sum(s * ndimage.gaussian_filter(rng.normal(size=(size, size)), s) for s in (3, 6, 12))
    return np.interp(noise, (noise.min(), noise.max()), (0, 255)).astype(np.uint8)


def hamming(a, b) -> int:
    return int(np.bitwise_count(a ^ b))


def test_the_eight_symmetries_are_a_group():
    image = picture(0)
    turned = [turn(image, code) for code in range(SYMMETRIES)]
    assert len({t.tobytes() for t in turned}) == 8
    for t in turned:  # closed under composition
        for code in range(SYMMETRIES):
            assert turn(t, code).tobytes() in {t.tobytes() for t in turned}
    assert (turn(image, 4) == image[:, ::-1]).all() and (turn(image, 1) == np.rot90(image)).all()
    stack = np.stack([image, turned[3]])
    assert (turn(stack, 5)[1] == turn(turned[3], 5)).all()


@pytest.mark.parametrize("seed", range(5))
def test_entry_k_is_the_hash_of_the_picture_turned_by_k(seed):
    image = picture(seed)
    hashes = perceptual_hash(image)
    assert hashes.shape == (8,) and hashes.dtype == np.uint64
    for code in range(SYMMETRIES):
        # Not to the last bit: a coefficient near zero may change its sign when pixels are added in another order.
        assert hamming(perceptual_hash(np.ascontiguousarray(turn(image, code)))[0], hashes[code]) <= 2


def test_hashes_forgive_brightness_compression_and_size():
    image = picture(1)
    buffer = io.BytesIO()
    Image.fromarray((image * 0.6 + 30).astype(np.uint8)).resize((224, 224)).save(buffer, "JPEG", quality=60)
    copy = np.asarray(Image.open(buffer))
    assert hamming(perceptual_hash(image)[0], perceptual_hash(copy)[0]) <= 6
    others = [hamming(perceptual_hash(image)[0], perceptual_hash(picture(seed))[0]) for seed in range(2, 30)]
    assert min(others) > 12  # 63 independent signs: 31.5 on average


def test_pairs_and_how_they_are_turned():
    base = [picture(seed) for seed in range(20)]
    images = [*base, turn(base[3], 6), (base[5] // 2 + 40).astype(np.uint8), turn(base[3], 1)]
    images = [np.ascontiguousarray(image) for image in images]
    found = near_duplicates(np.stack([thumbnail(i) for i in images]), np.stack([perceptual_hash(i) for i in images]))
    assert found.pairs.tolist() == [[3, 20], [3, 22], [5, 21], [20, 22]]
    for (a, b), code in zip(found.pairs, found.symmetry, strict=True):
        back = turn(images[b], code).astype(float)
        assert np.corrcoef(back.ravel(), images[a].astype(float).ravel())[0, 1] > 0.99
        assert orientation(images[a], images[b]) == code
    assert (found.correlation > 0.98).all()


def test_no_pictures_and_flat_pictures():
    empty = near_duplicates(np.empty((0, 64, 64), np.uint8), np.empty((0, 8), np.uint64))
    assert empty.pairs.shape == (0, 2)
    flat = [np.full((64, 64), value, np.uint8) for value in (0, 0, 128)]
    found = near_duplicates(np.stack(flat), np.stack([perceptual_hash(i) for i in flat]))
    assert len(found.pairs) == 0  # a correlation with a constant is not defined: nothing is claimed
