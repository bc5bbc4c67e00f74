"""From bytes to what a model sees, and augmentation of whole batches on the device that trains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F


def to_input(images: torch.Tensor, channels: int | None = None) -> torch.Tensor:
    """Turn uint8 ``(B, C, H, W)`` into float32 in [0, 1]; one gray channel is repeated ``channels`` times if given."""
    images = images.float().div_(255)
    return repeat_channels(images, channels)


def repeat_channels(images: torch.Tensor, channels: int | None) -> torch.Tensor:
    """Repeat a single gray channel, ``(B, 1, H, W)`` to ``(B, channels, H, W)``, without copying."""
    return images if channels is None or images.shape[1] == channels else images.expand(-1, channels, -1, -1)


@dataclass(frozen=True)
class Augment:
    """Random left-right flips, rotations, brightness and contrast, a different draw for each image of the batch.

    Attributes:
        flip: probability of a left-right flip.
        rotation: largest angle in degrees; drawn uniformly from [-rotation, rotation]. Corners fill with black.
        brightness: images are multiplied by a factor from [1 - brightness, 1 + brightness].
        contrast: the distance to the image's mean is multiplied by a factor from [1 - contrast, 1 + contrast].
    """

    flip: float = 0.5
    rotation: float = 10.0
    brightness: float = 0.2
    contrast: float = 0.2

    def draw(self, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """The random numbers for ``count`` images, ``(4, count)`` in [0, 1); drawn on the CPU, so a GPU augments alike.

        Processes that share a batch draw for the whole of it, and each takes the columns of its own images.
        """
        return torch.rand(4, count, generator=generator)

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
        angle = (2 * draw[0] - 1) * math.radians(self.rotation)
        mirror = torch.where(draw[1] < self.flip, -1.0, 1.0)
        zero = torch.zeros_like(angle)
        # One affine map does both: rotate, then mirror the horizontal axis. One resampling blurs once.
        row1 = torch.stack([mirror * angle.cos(), -angle.sin(), zero], -1)
        row2 = torch.stack([mirror * angle.sin(), angle.cos(), zero], -1)
        theta = torch.stack([row1, row2], 1).to(images.device)  # (B, 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
        brightness = 1 + self.brightness * (2 * draw[2] - 1)
        contrast = 1 + self.contrast * (2 * draw[3] - 1)
        images = (images * brightness.to(images.device).view(-1, 1, 1, 1)).clamp_(0, 1)
        mean = images.mean((1, 2, 3), keepdim=True)
        return torch.lerp(mean, images, contrast.to(images.device).view(-1, 1, 1, 1)).clamp_(0, 1)
