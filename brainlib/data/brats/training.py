"""Slices as a segmenter is given them: normalized, with their neighbors, cut to the head, and the masks to outline."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from brainlib.files import DataError

from .dataset import BraTSSlices
from .transform import REGIONS, min_max, region_masks, standardize

NORMALIZATIONS = ("min_max", "standardize")


@dataclass
class SegmentationData:
    """Slices with everything that `brainlib.train.fit` needs to train a segmenter on them.

    Attributes:
        slices: which slices of which patients.
        regions: names in `REGIONS`, one mask each.
        normalize: ``"min_max"``, each slice and channel by its own extremes, as the study did; or ``"standardize"``,
            each channel by mean and deviation of the whole brain.
        neighbors: slices below and above that are given as further channels ("2.5-D"); 0 for none. They come from the
            patient's file, whether or not ``slices`` holds them. Beyond the ends of the volume the last slice is
            repeated; where a file lacks slices, the next one that it has stands for them.
        crop: height and width of the window around the brain that is looked at; None for the whole slice.
        foreground: share of slices with tumor in what an epoch draws; None takes every slice once an epoch.
        draws: number of slices that an epoch draws with ``foreground``; None for as many as there are.
    """

    slices: BraTSSlices
    regions: Sequence[str] = ("NCR", "ED", "ET")
    normalize: str = "min_max"
    neighbors: int = 0
    crop: tuple[int, int] | None = None
    foreground: float | None = None
    draws: int | None = None
    # By number of the patient, so not to be shared with another data set or crop: `replace` starts an empty one.
    _corners: dict[int, tuple[int, int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.regions if name not in REGIONS]:
            raise DataError(f"regions={unknown}: choose from {', '.join(REGIONS)}")
        if self.normalize not in NORMALIZATIONS:
            raise DataError(f"normalize={self.normalize!r}: choose one of {', '.join(NORMALIZATIONS)}")
        if self.neighbors < 0:
            raise DataError(f"neighbors={self.neighbors}: 0 or more slices on each side")
        if self.foreground is not None and not 0 <= self.foreground <= 1:
            raise DataError(f"foreground={self.foreground}: a share, from 0 to 1, or None")
        if self.foreground and not self.slices.has_tumor.any():
            raise DataError(f"foreground={self.foreground}: none of the {len(self.slices)} slices has tumor")
        height, width = self.slices.shape[1:]
        if self.crop is not None and not (0 < self.crop[0] <= height and 0 < self.crop[1] <= width):
            raise DataError(f"crop={self.crop}: it must fit into slices of {height} × {width}")

    def __len__(self) -> int:
        return len(self.slices)

    @property
    def groups(self) -> np.ndarray:
        """int64 ``(N,)``: the patient of each slice."""
        return self.slices.groups

    @property
    def channels(self) -> int:
        """Channels that a model is given: four contrasts of each slice."""
        return 4 * (2 * self.neighbors + 1)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what a model is given."""
        return self.crop or tuple(self.slices.shape[1:])

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change when the slices do, or what is made of them."""
        made = (tuple(self.regions), self.normalize, self.neighbors, self.crop, self.foreground, self.draws)
        return hashlib.sha256(f"{self.slices.fingerprint}|{made}".encode()).hexdigest()[:16]

    def subset(self, index: Sequence[int] | np.ndarray) -> SegmentationData:
        """The slices at ``index`` (integers or a boolean mask), in that order."""
        part = replace(self, slices=self.slices.subset(index))
        part._corners = self._corners
        return part

    def order(self, generator: torch.Generator) -> torch.Tensor:
        """Positions of the slices of one epoch, int64: all, shuffled, or drawn with ``foreground`` from tumor slices.

        nnU-Net draws a third of its patches so that they hold foreground (Isensee et al. 2021).
        """
        if self.foreground is None:
            return torch.randperm(len(self), generator=generator)
        count = self.draws or len(self)
        tumor = torch.from_numpy(self._tumor)
        anywhere = torch.randint(len(self), (count,), generator=generator)
        inside = tumor[torch.randint(len(tumor), (count,), generator=generator)] if len(tumor) else anywhere
        return torch.where(torch.rand(count, generator=generator) < self.foreground, inside, anywhere)

    @cached_property
    def _tumor(self) -> np.ndarray:
        return np.flatnonzero(self.slices.has_tumor)

    def batch(self, index: torch.Tensor | np.ndarray | Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 images ``(B, channels, h, w)``, slices from below upward, and labels ``(B, h, w)``, on the CPU."""
        index = np.asarray(index)
        groups, rows, ids = self.groups[index].tolist(), self.slices.rows[index].tolist(), self.slices.dataset.ids
        h, w = self.size
        images = torch.empty((len(rows), self.channels, h, w), dtype=torch.uint8)
        labels = torch.empty((len(rows), h, w), dtype=torch.uint8)
        into_images, into_labels = images.numpy(), labels.numpy()
        for position, (group, row) in enumerate(zip(groups, rows, strict=True)):
            records = self.slices.dataset._records(ids[group])
            y, x = self.corner(group)
            for k, step in enumerate(self.offsets):
                near = min(max(row + step, 0), len(records) - 1)
                into_images[position, 4 * k : 4 * k + 4] = records[near, :4, y : y + h, x : x + w]
            into_labels[position] = records[row, 4, y : y + h, x : x + w]
        return images, labels

    @property
    def offsets(self) -> range:
        """Which slices of the patient's file a model sees around each: -1, 0, 1 for one neighbor."""
        return range(-self.neighbors, self.neighbors + 1)

    def corner(self, group: int) -> tuple[int, int]:
        """First row and column of the window of a patient, numbered as in ``groups``: its middle is the brain's."""
        group = int(group)
        if self.crop is None:
            return 0, 0
        if group not in self._corners:
            dataset = self.slices.dataset
            brain = dataset._records(dataset.ids[group])[:, :4].any((0, 1))
            corner = []
            for axis, (size, whole) in enumerate(zip(self.crop, brain.shape, strict=True)):
                first, last = np.flatnonzero(brain.any(1 - axis))[[0, -1]]
                corner.append(int(np.clip((first + last + 1 - size) // 2, 0, whole - size)))
            self._corners[group] = tuple(corner)
        return self._corners[group]

    def prepare(
        self, images: torch.Tensor, labels: torch.Tensor, index: torch.Tensor | np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch on the training device, as `batch` gave it, to float32 images and bool masks ``(B, R, h, w)``."""
        if self.normalize == "min_max":
            return min_max(images), region_masks(labels, self.regions)
        mean, std = (values.repeat(1, 2 * self.neighbors + 1) for values in self.slices.statistics(index))
        return standardize(images, mean, std), region_masks(labels, self.regions)

    def restore(self, masks: np.ndarray, index: Sequence[int] | np.ndarray) -> np.ndarray:
        """Masks or probabilities ``(B, R, h, w)`` of the slices at ``index`` in the place of the window, 0 elsewhere.

        Returns ``(B, R, H, W)`` with H and W of the whole slice.
        """
        if self.crop is None:
            return masks
        whole = np.zeros((*masks.shape[:2], *self.slices.shape[1:]), masks.dtype)
        for target, mask, group in zip(whole, masks, self.groups[np.asarray(index)], strict=True):
            y, x = self.corner(group)
            target[:, y : y + self.crop[0], x : x + self.crop[1]] = mask
        return whole
