"""From bytes to what a model sees, and augmentation of whole batches on the device that trains."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from brainlib.files import DataError


def to_input(images: torch.Tensor, channels: int | None = None) -> torch.Tensor:
    """Turn uint8 ``(B, C, H, W)`` into float32 in [0, 1]; one gray channel is repeated ``channels`` times if given.

    Raises:
        DataError: images that are no bytes.
    """
    if images.dtype != torch.uint8:
        raise DataError(f"to_input: images must be uint8, 0 to 255, not {images.dtype}: floats are ready for a model")
    return repeat_channels(images.float().div_(255), channels)


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Few numbers on the way to the device that trains; a GPU gets them from pinned memory, so that nothing waits."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def repeat_channels(images: torch.Tensor, channels: int | None) -> torch.Tensor:
    """Repeat a single gray channel, ``(B, 1, H, W)`` to ``(B, channels, H, W)``, without copying."""
    return images if channels is None or images.shape[1] == channels else images.expand(-1, channels, -1, -1)


@dataclass(frozen=True, repr=False)
class Augment:
    """Random flips, rotations, zooms, shifts, brightness, contrast and holes, a different draw for each image.

    The first four are the study's; the others are off unless asked for.

    Attributes:
        flip: probability of a left-right flip.
        rotation: largest angle in degrees; drawn uniformly from [-rotation, rotation]. Corners fill with black.
        brightness: images are multiplied by a factor from [1 - brightness, 1 + brightness].
        contrast: the distance to the image's mean is multiplied by a factor from [1 - contrast, 1 + contrast].
        zoom: the head is made larger or smaller by a factor from [1 - zoom, 1 + zoom].
        shift: the head is moved by up to this share of the side, down and to the right independently.
        erase: probability of blackening one rectangle with sides of 1/8 to 3/8 of the image's (after Zhong et al. 2020,
            arXiv 1708.04896).
    """

    flip: float = 0.5
    rotation: float = 10.0
    brightness: float = 0.2
    contrast: float = 0.2
    zoom: float = 0.0
    shift: float = 0.0
    erase: float = 0.0

    def __repr__(self) -> str:
        # What is off is left out: a checkpoint names its augmentation, and older ones know the first four only.
        values = [(f.name, getattr(self, f.name)) for f in fields(self)]
        shown = [f"{name}={value}" for i, (name, value) in enumerate(values) if i < 4 or value]
        return f"Augment({', '.join(shown)})"

    def draw(self, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """The random numbers for ``count`` images, a column for each, in [0, 1); drawn on the CPU for all devices.

        Processes that share a batch draw for the whole of it, and each takes the columns of its own images.
        """
        rows = 12 if self.zoom or self.shift or self.erase else 4
        return torch.rand(rows, count, generator=generator)

    def __call__(
        self, images: torch.Tensor, generator: torch.Generator | None = None, *, draw: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Augment float ``(B, C, H, W)`` in [0, 1]; the result has the same shape, device and range.

        Args:
            generator: a CPU generator for the random numbers.
            draw: the random numbers themselves, as `draw` gives them, instead.
        """
        if draw is None:
            draw = self.draw(len(images), generator)
        spread = 2 * draw - 1  # in [-1, 1)
        angle = spread[0] * math.radians(self.rotation)
        mirror = torch.where(draw[1] < self.flip, -1.0, 1.0)
        size, right, down = torch.ones_like(angle), torch.zeros_like(angle), torch.zeros_like(angle)
        if len(draw) > 4:
            # affine_grid says where a pixel of the result comes from: a larger head comes from a smaller region. The
            # image is 2 units wide.
            size = 1 / (1 + self.zoom * spread[4])
            right, down = 2 * self.shift * spread[5], 2 * self.shift * spread[6]
        # One affine map does all of it: one resampling blurs once.
        row1 = torch.stack([mirror * size * angle.cos(), -size * angle.sin(), right], -1)
        row2 = torch.stack([mirror * size * angle.sin(), size * angle.cos(), down], -1)
        theta = to_device(torch.stack([row1, row2], 1), images.device)  # (B, 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
        brightness = 1 + self.brightness * spread[2]
        contrast = 1 + self.contrast * spread[3]
        images = (images * to_device(brightness, images.device).view(-1, 1, 1, 1)).clamp_(0, 1)
        mean = images.mean((1, 2, 3), keepdim=True)
        images = torch.lerp(mean, images, to_device(contrast, images.device).view(-1, 1, 1, 1)).clamp_(0, 1)
        if self.erase:
            hole = _hole(draw[8:12], *images.shape[2:]) & (draw[7] < self.erase).view(-1, 1, 1)
            images = images.masked_fill(to_device(hole, images.device).unsqueeze(1), 0.0)
        return images


def _hole(draw: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A rectangle for each column of ``draw`` ``(4, B)``, bool ``(B, height, width)``."""
    inside = []
    for length, share, place in ((height, draw[0], draw[1]), (width, draw[2], draw[3])):
        extent = length * (1 + 2 * share) / 8
        start = place * (length - extent)
        position = torch.arange(length)
        inside.append((position >= start[:, None]) & (position < (start + extent)[:, None]))
    return inside[0][:, :, None] & inside[1][:, None, :]
