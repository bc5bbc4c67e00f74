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
    links = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    _, component = connected_components(links, directed=False)
    _, appearance, group = np.unique(component, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(appearance))[group].astype(np.int64)


def group_split(
    groups: np.ndarray, fractions: Sequence[float], seed: int, labels: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    """Divide items into parts of about the given fractions, keeping every group whole.

    Groups are taken in random order, large ones first, and each goes to the part that lacks the most items of the
    group's classes. With no group larger than the smallest part this meets each fraction, class by class, to within
    the size of a group or two.

    Args:
        groups: int64 ``(N,)``.
        fractions: positive numbers that sum to 1, one for each part.
        seed: for the order of the groups.
        labels: int64 ``(N,)``, to keep the classes in proportion; without it only the sizes are.

    Returns:
        For each fraction an int64 array of positions, sorted.

    Raises:
        DataError: the fractions do not sum to 1, or there are too few groups for a part to get one.
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
    part = np.empty(len(names), int)
    for group in order:
        # The share still lacking, so that a small part is not starved by a large one.
        lack = (missing / (fractions[:, None] * content.sum(0) + 1e-9)) @ content[group]
        part[group] = int(np.argmax(lack))
        missing[part[group]] -= content[group]
    if len(np.unique(part)) < len(fractions):
        raise DataError(f"{len(names)} groups are too few, or too unequal, for parts of {fractions.tolist()}")
    return tuple(np.flatnonzero(part[member] == p) for p in range(len(fractions)))


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


def audit(dataset: MRIDataset, parts: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Count what a split leaks from its first part into its last.

    Args:
        dataset: the slices.
        parts: positions in each named part, the training part first and the test part last.

    Returns:
        ``test``: slices in the last part; ``copies``: those whose file is byte-identical to one in the first part;
        ``group``: those whose group (copy, mirrored copy, neighboring slice or patient) has a slice in the first part;
        ``unseen``: the rest.
    """
    train, test = list(parts.values())[0], list(parts.values())[-1]
    copies = np.isin(dataset.hashes[test], dataset.hashes[train])
    known = np.isin(dataset.groups[test], dataset.groups[train])
    return {
        "test": len(test),
        "copies": int(copies.sum()),
        "group": int(known.sum()),
        "unseen": int((~known).sum()),
    }
