"""What a split leaks: for each slice of the test part, the closest acquaintance in the training part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from brainlib.data.duplicates import orientation
from brainlib.data.mri import MRIDataset
from brainlib.files import DataError

KINDS = ("identical file", "copy", "mirrored copy", "neighbor", "unseen")


@dataclass(frozen=True)
class Audit:
    """The acquaintances of T test slices.

    Attributes:
        test: int64 ``(T,)``, their positions in the data set.
        kind: int64 ``(T,)``, an index into `KINDS`, the closest kind of acquaintance that there is. ``copy``: the same
            picture in another file, stored anew or with other brightness. ``mirrored copy``: flipped or turned.
            ``neighbor``: another slice that very likely shows the same patient.
        partner: int64 ``(T,)``, the position of one such training slice, -1 for none.
    """

    dataset: MRIDataset
    test: np.ndarray
    kind: np.ndarray
    partner: np.ndarray

    @property
    def unseen(self) -> np.ndarray:
        """Positions of the test slices without any acquaintance in the training part."""
        return self.test[self.kind == KINDS.index("unseen")]

    def counts(self) -> dict[str, int]:
        """Test slices of each kind; they add up to T."""
        return {name: int((self.kind == k).sum()) for k, name in enumerate(KINDS)}

    def table(self) -> dict[str, dict[str, int]]:
        """Test slices by class, then by kind, with a last row for all; ready for ``pandas.DataFrame.from_dict``."""
        labels = self.dataset.labels[self.test]
        masks = {name: labels == c for c, name in enumerate(self.dataset.classes)} | {"all": labels >= 0}
        return {
            row: {"slices": int(mask.sum())} | {n: int((self.kind[mask] == k).sum()) for k, n in enumerate(KINDS)}
            for row, mask in masks.items()
        }

    def pairs(self, kind: str, count: int, seed: int = 0) -> np.ndarray:
        """Up to ``count`` pairs (test, partner) of one kind drawn at random, int64 ``(n, 2)``: for a gallery."""
        if kind not in KINDS[:-1]:
            raise DataError(f"kind={kind!r}: choose one of {', '.join(KINDS[:-1])}")
        found = np.flatnonzero(self.kind == KINDS.index(kind))
        chosen = np.random.default_rng(seed).permutation(found)[:count]
        return np.stack([self.test[chosen], self.partner[chosen]], axis=1)


def audit(dataset: MRIDataset, parts: Mapping[str, np.ndarray]) -> Audit:
    """Find what a split leaks from its first part into its last.

    Args:
        dataset: the slices.
        parts: positions in each named part, the training part first and the test part last.
    """
    if len(parts) < 2:
        raise DataError("parts: an audit needs at least a training part and a test part")
    train, test = (np.asarray(list(parts.values())[side], np.int64) for side in (0, -1))
    kind = np.full(len(test), KINDS.index("unseen"))
    partner = np.full(len(test), -1)
    # From the loosest tie to the closest, so that the closest one stands in the end.
    ties = (("neighbor", dataset.groups), ("neighbor", dataset.series), ("copy", dataset.pictures))
    for name, column in (*ties, ("identical file", dataset.hashes)):
        first = {key: position for position, key in zip(train[::-1], column[train[::-1]].tolist(), strict=True)}
        first.pop(-1, None)  # -1: nothing is known
        for i, key in enumerate(column[test].tolist()):
            if key in first:
                kind[i], partner[i] = KINDS.index(name), first[key]
    for i in np.flatnonzero(kind == KINDS.index("copy")):
        # Among several copies one that is not mirrored would be the closer tie.
        same = train[dataset.pictures[train] == dataset.pictures[test[i]]]
        codes = [orientation(dataset.images[test[i]], dataset.images[j]) for j in same]
        partner[i] = same[int(np.argmax(np.array(codes) == 0))]
        if 0 not in codes:
            kind[i] = KINDS.index("mirrored copy")
    return Audit(dataset, test, kind, partner)
