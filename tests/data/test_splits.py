"""Groups are linked as they should be, and no split cuts one."""

import numpy as np
import pytest
from helpers import random_slices
from hypothesis import given, settings
from hypothesis import strategies as st

from brainlib.data import (
    DataError,
    MRIDataset,
    audit,
    check_split,
    group_folds,
    group_split,
    link_groups,
    load_mri,
    patient_folds,
)
from brainlib.data.audit import KINDS
from brainlib.data.mri import SPLITS, read_match_table

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


@quick
@given(grouped(), st.integers(0, 5))
def test_no_part_exceeds_its_fraction_by_a_group(content, seed):
    """The bound of the docstring, class by class, for groups of one class."""
    groups, labels = content
    for fractions in FRACTIONS:
        if len(np.unique(groups)) < len(fractions):
            continue
        try:
            parts = group_split(groups, fractions, seed, labels)
        except DataError:
            continue  # too few groups for a part to get one
        for c in np.unique(labels):
            largest = max(np.bincount(np.unique(groups[labels == c], return_inverse=True)[1]))
            for part, fraction in zip(parts, fractions, strict=True):
                surplus = (labels[part] == c).sum() - fraction * (labels == c).sum()
                assert surplus <= (1 - fraction) * largest + 1e-6
                assert -surplus <= (len(fractions) - 2 + fraction) * largest + 1e-6 or len(fractions) == 1


@quick
@given(grouped(), st.integers(2, 5), st.integers(0, 5))
def test_folds_test_every_item_once_and_cut_no_group(content, folds, seed):
    groups, labels = content
    if len(np.unique(groups)) < folds:
        return
    try:
        parts = group_folds(groups, folds, seed, labels)
    except DataError:
        return
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    check_split({str(k): groups[part] for k, part in enumerate(parts)})


def test_fixed_items_decide_for_their_groups():
    groups, labels = np.repeat(np.arange(20), 3), np.zeros(60, int)
    fixed = np.full(60, -1)
    fixed[[0, 4, 8]] = [2, 2, 0]  # groups 0, 1 and 2
    parts = group_folds(groups, 4, 0, labels, fixed)
    assert {0, 1, 2, 3, 4, 5} <= set(parts[2].tolist()) and {6, 7, 8} <= set(parts[0].tolist())
    assert [len(part) for part in parts] == [15] * 4
    with pytest.raises(DataError, match="one group is sent to two parts"):
        group_folds(groups, 4, 0, labels, np.where(np.arange(60) == 1, 3, fixed))
    with pytest.raises(DataError, match="0 to 3"):
        group_folds(groups, 4, 0, labels, np.where(fixed == 2, 4, fixed))
    with pytest.raises(DataError, match="at least 2"):
        group_folds(groups, 1)


# The real set ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(real_mri, tmp_path_factory) -> MRIDataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRAINLIB_DATA", str(tmp_path_factory.mktemp("real")))
        return load_mri(real_mri, size=32)


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


def test_perceptual_hashes_find_what_the_match_table_knows(real):
    """Two roads to one answer: pairs that share a source picture, and pairs found by looking at the pixels."""
    match = read_match_table()
    source = [match[p].picture if p in match else None for p in real.paths]
    known = link_groups([s if s and s.startswith("figshare") else None for s in source])
    seen = link_pairs_of(real)
    pairs = [np.flatnonzero(known == g) for g in np.flatnonzero(np.bincount(known) > 1)]
    assert len(pairs) > 1000 and np.mean([len(set(seen[pair])) == 1 for pair in pairs]) > 0.99


def link_pairs_of(real: MRIDataset) -> np.ndarray:
    from brainlib.data.duplicates import near_duplicates
    from brainlib.data.splits import link_pairs

    images = real.images.repeat(2, axis=1).repeat(2, axis=2)  # 32 pixels here, thumbnails have 64
    return link_pairs(near_duplicates(images, real.facts["phash"]).pairs, len(real))


def test_real_audit(real):
    train, test = (np.flatnonzero(real.splits == split) for split in SPLITS)
    leak = audit(real, {"training": train, "test": test})
    counts = leak.counts()
    assert sum(counts.values()) == 1311 == leak.table()["all"]["slices"] and list(counts) == list(KINDS)
    assert counts["identical file"] == np.isin(real.hashes[test], real.hashes[train]).sum() > 200
    assert counts["mirrored copy"] > counts["copy"] and counts["unseen"] < 30
    # What is called unseen shares neither file, nor picture, nor series with the training folder.
    match = read_match_table()
    known = set(real.hashes[train])
    for path in real.paths[train]:
        known |= {match[path].picture, match[path].series} if path in match else set()
    known -= {None}
    for position in leak.unseen:
        path = real.paths[position]
        assert real.hashes[position] not in known
        assert path not in match or not {match[path].picture, match[path].series} & known
    with pytest.raises(DataError, match="training and test share"):
        check_split({"training": real.groups[train], "test": real.groups[test]})


def test_real_folds_keep_the_published_ones(real):
    folds = patient_folds(real)
    for k, fold in enumerate(folds):
        assert set(real.folds[fold]) <= {0, k + 1}
        share = real.subset(fold).counts() / real.counts()
        assert (share > 0.15).all() and (share < 0.26).all()
        rest = np.setdiff1d(np.arange(len(real)), fold)
        assert audit(real, {"training": rest, "test": fold}).counts()["unseen"] == len(fold)
    assert sum(map(len, folds)) == len(real)


def test_real_split_by_group(real):
    train = real.subset(real.splits == "Training")
    inner, held = group_split(train.groups, (0.85, 0.15), 0, train.labels)
    check_split({"training": train.groups[inner], "validation": train.groups[held]})
    share = train.subset(held).counts() / train.counts()
    np.testing.assert_allclose(share, 0.15, atol=0.01)
