"""What a model is given: brightness on a common scale, and masks of the regions that are scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TypeVar

import numpy as np
import torch

from brainlib.data.augment import to_device
from brainlib.files import DataError

#: The values in a mask: necrotic and non-enhancing core, edema, enhancing tumor. There is no 3 in BraTS 2020.
LABELS = {"NCR": 1, "ED": 2, "ET": 4}
#: The regions that are scored: single labels, whole tumor and tumor core.
REGIONS = {"NCR": (1,), "ED": (2,), "ET": (4,), "WT": (1, 2, 4), "TC": (1, 4)}

Array = TypeVar("Array", np.ndarray, torch.Tensor)


def _either(function: Callable) -> Callable:
    """Let a function on tensors take NumPy arrays as well; the result is then an array."""

    @wraps(function)
    def wrapped(first, *others, **named):
        if isinstance(first, torch.Tensor):
            return function(first, *others, **named)
        # A copy, since a memory map is read-only and torch warns about that.
        return function(torch.tensor(np.asarray(first)), *others, **named).numpy()

    return wrapped


@_either
def min_max(images: Array) -> Array:
    """Scale each channel of each slice to [0, 1] by its own extremes, as the study did; a constant slice becomes 0.

    Args:
        images: ``(..., H, W)``, any type, any device; NumPy or torch.

    Returns:
        float32 of the same shape, ``(x - min) / (max - min)`` with the extremes over H and W.
    """
    images = images.float()
    low, high = images.amin((-2, -1), keepdim=True), images.amax((-2, -1), keepdim=True)
    span = high - low
    return (images - low) / torch.where(span > 0, span, 1)


@_either
def standardize(images: Array, mean: Array, std: Array) -> Array:
    """Subtract the brain's mean and divide by its standard deviation; the background (0) stays 0.

    Args:
        images: ``(..., C, H, W)`` with background exactly 0.
        mean, std: ``(..., C)`` in the unit of ``images``: `Volume.mean` and ``.std`` for a volume, those of
            `BraTSSlices.statistics` for a batch. A deviation of 0 divides by 1.

    Returns:
        float32 of the same shape, on the device of ``images``.
    """
    mean, std = (torch.as_tensor(v, dtype=torch.float32) for v in (mean, std))
    mean, std = (to_device(v, images.device)[..., None, None] for v in (mean, std))
    scaled = (images.float() - mean) / torch.where(std > 0, std, 1)
    return scaled.masked_fill_(images == 0, 0)


@_either
def region_masks(labels: Array, regions: Sequence[str] = ("WT", "TC", "ET")) -> Array:
    """Masks of overlapping regions from labels 0, 1, 2, 4.

    Args:
        labels: ``(..., H, W)``.
        regions: names in `REGIONS`.

    Returns:
        bool ``(..., R, H, W)``.
    """
    if unknown := [name for name in regions if name not in REGIONS]:
        raise DataError(f"regions={unknown}: choose from {', '.join(REGIONS)}")
    masks = []
    for name in regions:
        mask = labels == REGIONS[name][0]
        for value in REGIONS[name][1:]:
            mask |= labels == value
        masks.append(mask)
    return torch.stack(masks, -3)
