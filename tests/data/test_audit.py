"""The audit names the closest acquaintance of each test slice."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import random_slices

from brainlib.data import DataError, audit, link_groups
from brainlib.data.audit import KINDS


def hand_made():
    """Ten slices; 0-4 are for training. 5 is the file 0, 6 a brighter copy of 1, 7 its mirror image, 8 shares the
    patient of 2, 9 is new. 4 is a turned copy of 1."""
    data = random_slices(10, size=48)
    images, hashes = data.images.copy(), data.hashes.copy()
    images[5], hashes[5] = images[0], hashes[0]
    images[6] = images[1] // 2 + 100
    images[7] = images[1][:, ::-1]
    images[4] = np.rot90(images[1])
    pictures = np.array([0, 1, 2, 3, 1, 0, 1, 1, 4, 5])
    series = np.array([-1, -1, 7, -1, -1, -1, -1, -1, 7, -1])
    groups = link_groups(list(pictures), [s if s >= 0 else None for s in series])
    return replace(data, images=images, hashes=hashes, pictures=pictures, series=series, groups=groups)


TRAIN, TEST = np.arange(5), np.arange(5, 10)


def test_the_closest_kind_is_named():
    found = audit(hand_made(), {"train": TRAIN, "validation": np.array([], int), "test": TEST})
    assert [KINDS[k] for k in found.kind] == ["identical file", "copy", "mirrored copy", "neighbor", "unseen"]
    assert found.partner.tolist()[:2] == [0, 1] and found.partner.tolist()[3:] == [2, -1]
    assert found.partner[2] in (1, 4)
    assert found.unseen.tolist() == [9]
    assert found.counts() == dict.fromkeys(KINDS, 1)
    rows = found.table()
    assert rows["all"]["slices"] == 5 and sum(row["slices"] for name, row in rows.items() if name != "all") == 5


def test_a_plain_copy_is_preferred_to_a_mirrored_one():
    data = hand_made()
    train = np.array([4, 1])  # the turned one first
    found = audit(data, {"train": train, "test": np.array([6])})
    assert KINDS[found.kind[0]] == "copy" and found.partner[0] == 1
    found = audit(data, {"train": np.array([4]), "test": np.array([6])})
    assert KINDS[found.kind[0]] == "mirrored copy"


def test_a_split_by_group_leaks_nothing():
    found = audit(hand_made(), {"train": np.array([3]), "test": np.array([0, 1, 2, 9])})
    assert found.counts()["unseen"] == 4


def test_pairs_for_a_gallery():
    found = audit(hand_made(), {"train": TRAIN, "test": TEST})
    assert found.pairs("neighbor", 3).tolist() == [[8, 2]]
    with pytest.raises(DataError, match="identical file, copy"):
        found.pairs("unseen", 3)
    with pytest.raises(DataError, match="at least a training part"):
        audit(hand_made(), {"train": TRAIN})
