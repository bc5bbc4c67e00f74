"""Splits that never put one patient on two sides."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from brainlib.files import DataError

if TYPE_CHECKING:
    from brainlib.data.mri import MRIDataset


def link_groups(*keys: Sequence[Hashable | None]) -> np.ndarray:
    """Number the groups that form when items are linked by any shared key.

    Args:
        keys: one or more sequences of length N. Two items are linked when they have an equal key in any one of them;
            None links nothing. Links chain: if a is linked to b and b to c, all three share a group.

    Returns:
        int64 ``(N,)``, numbered from 0 in the order of first appearance.
    """
    count = len(keys[0])
    rows, columns = [], []
    for sequence in keys:
        first: dict[Hashable, int] = {}
        for item, key in enumerate(sequence):
            if key is not None:
                rows.append(item)
                columns.append(first.setdefault(key, item))
    return link_pairs(np.array([rows, columns], np.int64).T, count)


def link_pairs(pairs: np.ndarray, count: int) -> np.ndarray:
    """Number the groups that form when ``count`` items are linked by ``pairs``, int64 ``(M, 2)`` of positions.

    Returns:
        int64 ``(count,)``, numbered from 0 in the order of first appearance.
    """
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, component = connected_components(links, directed=False)
    _, appearance, group = np.unique(component, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(appearance))[group].astype(np.int64)


def group_split(
    groups: np.ndarray,
    fractions: Sequence[float],
    seed: int,
    labels: np.ndarray | None = None,
    fixed: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """Divide items into parts of about the given fractions, keeping every group whole.

    Groups are taken in random order, large ones first, and each goes to the part that lacks the largest share of the
    group's classes. Where each group is of one class this bounds the error: no part gets more than its fraction of a
    class by more than ``1 - fraction`` times the largest group of that class, so with P parts none falls short by more
    than ``P - 2 + fraction`` times that group. (While anything is left to give, the most lacking part lacks at least
    its fraction of what is left.) Groups that mix classes are rare and weaken the bound a little.

    Args:
        groups: int64 ``(N,)``.
        fractions: positive numbers that sum to 1, one for each part.
        seed: for the order of the groups.
        labels: int64 ``(N,)``, to keep the classes in proportion; without it only the sizes are.
        fixed: int64 ``(N,)``, the part that an item must go to, -1 where that is free. One item decides for its group.

    Returns:
        For each fraction an int64 array of positions, sorted.

    Raises:
        DataError: the fractions do not sum to 1, there are too few groups for a part to get one, or ``fixed`` sends two
            items of a group to different parts.
    """
    groups = np.asarray(groups)
    fractions = np.asarray(fractions, dtype=float)
    if fractions.ndim != 1 or (fractions <= 0).any() or not np.isclose(fractions.sum(), 1):
        raise DataError(f"fractions={fractions.tolist()}: they must be positive and sum to 1")
    labels = np.zeros(len(groups), int) if labels is None else np.asarray(labels)
    names, member = np.unique(groups, return_inverse=True)
    if len(names) < len(fractions):
        raise DataError(f"{len(names)} group(s) cannot be divided into {len(fractions)} parts without cutting one")
    content = np.zeros((len(names), labels.max() + 1))  # items of each class in each group
    np.add.at(content, (member, labels), 1)
    missing = fractions[:, None] * content.sum(0)  # items of each class that each part still lacks
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-content[order].sum(1), kind="stable")]
    part = _fixed_parts(member, len(names), len(fractions), fixed)
    for group in np.flatnonzero(part >= 0):
        missing[part[group]] -= content[group]
    for group in order[part[order] < 0]:
        # The share still lacking, so that a small part is not starved by a large one.
        lack = (missing / (fractions[:, None] * content.sum(0) + 1e-9)) @ content[group]
        part[group] = int(np.argmax(lack))
        missing[part[group]] -= content[group]
    if len(np.unique(part)) < len(fractions):
        raise DataError(f"{len(names)} groups are too few, or too unequal, for parts of {fractions.tolist()}")
    return tuple(np.flatnonzero(part[member] == p) for p in range(len(fractions)))


def _fixed_parts(member: np.ndarray, groups: int, parts: int, fixed: np.ndarray | None) -> np.ndarray:
    """The part of each group, -1 where it is free."""
    part = np.full(groups, -1)
    if fixed is None:
        return part
    given = np.flatnonzero(np.asarray(fixed) >= 0)
    part[member[given]] = fixed[given]
    if (part >= parts).any() or (part[member[given]] != fixed[given]).any():
        raise DataError(f"fixed: a part is not in 0 to {parts - 1}, or one group is sent to two parts")
    return part


def group_folds(
    groups: np.ndarray, folds: int = 5, seed: int = 0, labels: np.ndarray | None = None, fixed: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    """Divide items into ``folds`` parts of equal size for cross-validation, keeping every group whole.

    Each item is in exactly one fold, so a model that learns from the other folds is tested on every patient once. See
    `group_split` for the arguments, the bound and the errors.
    """
    if folds < 2:
        raise DataError(f"folds={folds}: cross-validation needs at least 2")
    return group_split(groups, np.full(folds, 1 / folds), seed, labels, fixed)


def patient_folds(dataset: MRIDataset, folds: int = 5, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Folds that keep patients apart as far as they are known.

    With 5 folds, slices that are found in a collection with published folds keep theirs, and with them their whole
    group; all others are divided by group.
    """
    fixed = dataset.folds - 1 if folds == 5 else None
    return group_folds(dataset.groups, folds, seed, dataset.labels, fixed)


def check_split(parts: Mapping[str, np.ndarray]) -> None:
    """Refuse a split that has one group, so perhaps one patient, on two sides.

    Args:
        parts: the groups, int64 ``(n,)``, of the items in each named part; numbered jointly.

    Raises:
        DataError: names the two parts, how many groups they share, and one of them.
    """
    for (a, groups_a), (b, groups_b) in combinations(parts.items(), 2):
        shared = np.intersect1d(groups_a, groups_b)
        if len(shared):
            raise DataError(
                f"{a} and {b} share {len(shared)} group(s), for example group {shared[0]}: the same patient would be "
                "learned and tested. Split with brainlib.data.group_split, which keeps groups whole."
            )
