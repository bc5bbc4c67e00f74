"""Groups are linked as they should be, and no split cuts one."""

import hashlib

import numpy as np
import pytest
from helpers import random_slices
from hypothesis import given, settings
from hypothesis import strategies as st

from brainlib.data import DataError, MRIDataset, audit, check_split, group_split, link_groups
from brainlib.data.mri import CLASSES, SPLITS, list_files, read_match_table, slice_groups

quick = settings(deadline=None, max_examples=60, derandomize=True)
FRACTIONS = [(1.0,), (0.85, 0.15), (0.5, 0.5), (0.7, 0.15, 0.15), (0.25, 0.25, 0.25, 0.25)]


def union_find(keys: list[list]) -> list[int]:
    """The groups by brute force: join every two items that share a key, until nothing changes."""
    group = list(range(len(keys[0])))
    changed = True
    while changed:
        changed = False
        for a in range(len(group)):
            for b in range(a):
                linked = any(key[a] is not None and key[a] == key[b] for key in keys)
                if linked and group[a] != group[b]:
                    old, new = max(group[a], group[b]), min(group[a], group[b])
                    group = [new if g == old else g for g in group]
                    changed = True
    names = list(dict.fromkeys(group))
    return [names.index(g) for g in group]


@quick
@given(st.data())
def test_link_groups_equals_union_find(data):
    count = data.draw(st.integers(1, 25))
    key = st.one_of(st.none(), st.integers(0, 12))
    keys = data.draw(st.lists(st.lists(key, min_size=count, max_size=count), min_size=1, max_size=3))
    found = link_groups(*keys)
    assert found.dtype == np.int64 and found.tolist() == union_find(keys)


def test_links_chain_across_keys():
    # 0-1 by the first key, 1-2 by the second, 2-4 by the first again; 3 stands alone, and None links nothing.
    assert link_groups(["a", "a", "b", None, "b", None], [None, "x", "x", None, None, "y"]).tolist() == [
        0,
        0,
        0,
        1,
        0,
        2,
    ]


@st.composite
def grouped(draw):
    """Group numbers (not from 0, not in order) with one label for each group, as patients with one diagnosis have."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = rng.integers(1, draw(st.integers(2, 9)), draw(st.integers(24, 120)))
    names = rng.permutation(1000)[: len(sizes)]
    diagnosis = rng.integers(0, draw(st.integers(1, 4)), len(sizes))
    order = rng.permutation(sizes.sum())
    return np.repeat(names, sizes)[order], np.repeat(diagnosis, sizes)[order]


@quick
@given(grouped(), st.sampled_from(FRACTIONS), st.integers(0, 5), st.booleans())
def test_no_group_is_cut_and_nothing_is_lost(case, fractions, seed, stratify):
    groups, labels = case
    parts = group_split(groups, fractions, seed, labels if stratify else None)
    assert len(parts) == len(fractions)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    assert all((np.diff(part) > 0).all() for part in parts)
    check_split({str(i): groups[part] for i, part in enumerate(parts)})


@quick
@given(grouped(), st.sampled_from(FRACTIONS), st.integers(0, 5))
def test_fractions_are_met_to_within_two_groups(case, fractions, seed):
    groups, labels = case
    largest = np.bincount(groups).max()
    for part, fraction in zip(group_split(groups, fractions, seed), fractions, strict=True):
        assert abs(len(part) - fraction * len(groups)) <= 2 * largest
    for part, fraction in zip(group_split(groups, fractions, seed, labels), fractions, strict=True):
        for label in np.unique(labels):
            wanted = fraction * (labels == label).sum()
            assert abs((labels[part] == label).sum() - wanted) <= 2 * largest


def test_rare_class_reaches_every_part():
    groups = np.arange(1000)
    labels = (groups % 50 == 0).astype(int)  # 20 of 1000
    train, test = group_split(groups, (0.8, 0.2), 0, labels)
    assert labels[train].sum() == 16 and labels[test].sum() == 4
    assert {group_split(groups, (0.8, 0.2), seed)[1].size for seed in range(5)} == {200}


@quick
@given(grouped(), st.integers(0, 1000))
def test_seed_decides(case, seed):
    groups, labels = case
    first, second = (group_split(groups, (0.5, 0.5), seed, labels) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({group_split(groups, (0.5, 0.5), s, labels)[0].tobytes() for s in range(8)}) > 1


def test_split_belongs_to_the_groups_and_not_to_their_numbers_order_in_the_file():
    groups = np.repeat(np.arange(30), 4)
    order = np.random.default_rng(0).permutation(120)
    test = group_split(groups, (0.7, 0.3), 0)[1]
    shuffled = group_split(groups[order], (0.7, 0.3), 0)[1]
    assert set(groups[test]) == set(groups[order][shuffled])


@pytest.mark.parametrize("fractions", [(0.5, 0.6), (1.2, -0.2), (1.0, 0.0), (), (np.nan, 0.5), ((0.5, 0.5),)])
def test_wrong_fractions(fractions):
    with pytest.raises(DataError, match="fractions="):
        group_split(np.arange(10), fractions, 0)


def test_too_few_groups():
    with pytest.raises(DataError, match="2 group.*3 parts"):
        group_split(np.array([7, 7, 9, 9]), (0.4, 0.3, 0.3), 0)
    with pytest.raises(DataError, match="0 group"):
        group_split(np.array([], int), (0.5, 0.5), 0)


def test_check_split_names_the_parts():
    check_split({"training": np.array([1, 1, 2]), "validation": np.array([3]), "test": np.array([4, 5])})
    with pytest.raises(DataError, match="training and test share 2 group.*example group 5"):
        check_split({"training": np.array([5, 1, 6]), "validation": np.array([3]), "test": np.array([5, 6, 6, 7])})
    with pytest.raises(DataError, match="validation and test"):
        check_split({"training": np.array([1]), "validation": np.array([3]), "test": np.array([3])})


def hand_made() -> MRIDataset:
    """Six slices: 0-2 to train on. 3 is a copy of 0, 4 another slice of the patient of 1, 5 is new."""
    data = random_slices(6)
    data.hashes[3] = data.hashes[0]
    data.groups[:] = link_groups(list(data.hashes), [None, "p", "q", None, "p", "r"])
    return data


def test_audit_counts_what_leaks():
    parts = {"training": np.array([0, 1, 2]), "test": np.array([3, 4, 5])}
    assert audit(hand_made(), parts) == {"test": 3, "copies": 1, "group": 2, "unseen": 1}
    clean = {"training": np.array([0, 1, 3, 4]), "validation": np.array([2]), "test": np.array([5])}
    assert audit(hand_made(), clean) == {"test": 1, "copies": 0, "group": 0, "unseen": 1}


# The real set ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(real_mri) -> MRIDataset:
    """The real set without its pixels, which no split looks at: reading 55 MB of bytes takes a second."""
    files = list_files(real_mri)
    paths = np.array([file.relative_to(real_mri).as_posix() for file in files])
    hashes = np.array([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
    return MRIDataset(
        name="brain-tumor-mri",
        images=np.zeros((len(files), 1, 1), np.uint8),
        labels=np.array([CLASSES.index(file.parent.name) for file in files]),
        groups=slice_groups(real_mri, paths, hashes),
        paths=paths,
        hashes=hashes,
        sizes=np.zeros((len(files), 2), int),
        splits=np.array([file.parent.parent.name for file in files]),
    )


def test_real_counts(real):
    counts = {split: real.subset(real.splits == split).counts().tolist() for split in SPLITS}
    assert counts == {"Training": [1321, 1339, 1591, 1457], "Testing": [300, 306, 405, 300]}


def test_real_copies(real):
    _, group, size = np.unique(real.hashes, return_inverse=True, return_counts=True)
    assert (size > 1).sum() == 300 and size[size > 1].sum() == 726
    both = [set(real.splits[group == g]) == set(SPLITS) for g in np.flatnonzero(size > 1)]
    assert sum(both) == 189


def test_real_pictures_on_both_sides(real):
    match = read_match_table()
    pictures = {
        split: {match[p].picture for p in real.paths[real.splits == split] if p in match and match[p].fold > 0}
        for split in SPLITS
    }
    assert all(picture.startswith("figshare-") for picture in pictures["Testing"])
    assert len(pictures["Testing"]) == 744 and len(pictures["Testing"] & pictures["Training"]) == 480
    assert sum(path in match for path in real.paths) == len(match) == 6497


def test_real_audit(real):
    train, test = (np.flatnonzero(real.splits == split) for split in SPLITS)
    leak = audit(real, {"training": train, "test": test})
    assert leak["test"] == 1311 and leak["group"] + leak["unseen"] == 1311
    in_training = set(real.hashes[train])
    assert leak["copies"] == sum(h in in_training for h in real.hashes[test])
    # What is called unseen shares neither file, nor picture, nor series with the training folder.
    match = read_match_table()
    known = set(real.hashes[train])
    for path in real.paths[train]:
        known |= {match[path].picture, match[path].series} if path in match else set()
    known -= {None}
    for position in test[~np.isin(real.groups[test], real.groups[train])]:
        path = real.paths[position]
        assert real.hashes[position] not in known
        assert path not in match or not {match[path].picture, match[path].series} & known
    with pytest.raises(DataError, match="training and test share"):
        check_split({"training": real.groups[train], "test": real.groups[test]})


def test_real_split_by_group(real):
    train = real.subset(real.splits == "Training")
    inner, held = group_split(train.groups, (0.85, 0.15), 0, train.labels)
    check_split({"training": train.groups[inner], "validation": train.groups[held]})
    share = train.subset(held).counts() / train.counts()
    np.testing.assert_allclose(share, 0.15, atol=0.01)
