"""Augmentation of slices together with their masks, for whole batches, on the device that trains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from brainlib.data.augment import to_device

CONTRASTS = 4  # of a slice; neighbors repeat them


@dataclass(frozen=True)
class SegmentationAugment:
    """Random mirroring, rotation, zoom, brightness, contrast, gamma, noise and blur, a different draw for each slice.

    The choice and the order follow nnU-Net (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z, supplement). Image and
    mask move together, the mask by its nearest pixel. What changes brightness changes the brain only: a background of
    exactly 0 stays 0. Brightness, contrast and gamma are drawn for each of the four contrasts apart.

    Attributes:
        flip: probability of mirroring, for each of the two axes apart.
        rotation: largest angle in degrees, either way.
        zoom: a slice is made larger or smaller by a factor from [1 / (1 + zoom), 1 + zoom].
        spatial: probability of rotation and zoom.
        brightness: values are multiplied by a factor from [1 - brightness, 1 + brightness].
        contrast: the distance to the mean is multiplied by a factor from [1 - contrast, 1 + contrast].
        gamma: values, brought to [0, 1], are raised to a power from [1 / (1 + gamma), 1 + gamma].
        noise: largest standard deviation of Gaussian noise, in the unit of the images.
        noisy: probability of noise.
        blur: probability of a slice that is made coarser by up to a factor of 2, then brought back to its size.
    """

    flip: float = 0.5
    rotation: float = 30.0
    zoom: float = 0.3
    spatial: float = 0.4
    brightness: float = 0.25
    contrast: float = 0.25
    gamma: float = 0.4
    noise: float = 0.1
    noisy: float = 0.15
    blur: float = 0.15

    def draw(self, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """The random numbers for ``count`` slices, a column for each, in [0, 1); see `Augment.draw`."""
        return torch.rand(10 + 3 * CONTRASTS, count, generator=generator)

    def __call__(
        self,
        images: torch.Tensor,
        masks: torch.Tensor,
        generator: torch.Generator | None = None,
        *,
        draw: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment images, float ``(B, C, H, W)`` with background 0, and masks, bool ``(B, R, H, W)``, alike.

        Args:
            generator: a CPU generator for the random numbers.
            draw: the random numbers themselves, as `draw` gives them, instead.
        """
        if draw is None:
            draw = self.draw(len(images), generator)
        images, masks, inside = self._move(images, masks, draw)
        images = self._coarsen(images, draw[8], draw[9])
        images = self._brighten(images, inside, draw[10:])
        images = self._disturb(images, draw[5], draw[6], draw[7])
        return images * inside, masks

    def _move(self, images: torch.Tensor, masks: torch.Tensor, draw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Images and masks in their new place, and where each image is not background, bool ``(B, C, H, W)``."""
        spatial = draw[4] < self.spatial
        angle = torch.where(spatial, math.radians(self.rotation) * (2 * draw[0] - 1), 0.0)
        size = torch.where(spatial, (1 + self.zoom) ** (2 * draw[3] - 1), 1.0)
        up, left = (torch.where(d < self.flip, -1.0, 1.0) for d in draw[1:3])
        height, width = images.shape[2:]
        # affine_grid counts each axis from -1 to 1, so where height and width differ a rotation needs their ratio.
        row1 = torch.stack([left * angle.cos(), -left * angle.sin() * height / width, torch.zeros_like(angle)], -1)
        row2 = torch.stack([up * angle.sin() * width / height, up * angle.cos(), torch.zeros_like(angle)], -1)
        theta = torch.stack([row1, row2], 1) / size[:, None, None]
        grid = F.affine_grid(to_device(theta, images.device), list(images.shape), align_corners=False)
        # The brain moves by its nearest pixel, as a mask does: between two pixels, and by rounding even where nothing
        # moves, the background next to it would take up some of its brightness, and gamma would raise that.
        both = torch.cat([images != 0, masks], 1).float()
        moved = F.grid_sample(both, grid, mode="nearest", padding_mode="zeros", align_corners=False) > 0.5
        images = F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
        return images, moved[:, images.shape[1] :], moved[:, : images.shape[1]]

    def _brighten(self, images: torch.Tensor, inside: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
        copies = images.shape[1] // CONTRASTS
        brightness, contrast, gamma = (
            to_device(d.T.repeat(1, copies), images.device)[:, :, None, None] for d in (2 * draw - 1).split(CONTRASTS)
        )
        count = inside.sum((2, 3), keepdim=True).clamp(min=1)
        low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
        span = (high - low).clamp(min=1e-6)
        images = low + span * ((images - low) / span).clamp(0, 1) ** ((1 + self.gamma) ** gamma)
        mean = (images * inside).sum((2, 3), keepdim=True) / count
        images = mean + (images - mean) * (1 + self.contrast * contrast)
        return images * (1 + self.brightness * brightness)

    def _coarsen(self, images: torch.Tensor, draw: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        chosen = (draw < self.blur).nonzero()[:, 0].tolist()
        if not chosen:
            return images
        images = images.clone()
        for i in chosen:
            small = [max(1, round(length / (1 + float(factor[i])))) for length in images.shape[2:]]
            coarse = F.interpolate(images[i : i + 1], small, mode="bilinear", antialias=True)
            images[i] = F.interpolate(coarse, images.shape[2:], mode="bilinear")[0]
        return images

    def _disturb(
        self, images: torch.Tensor, draw: torch.Tensor, deviation: torch.Tensor, seed: torch.Tensor
    ) -> torch.Tensor:
        chosen = (draw < self.noisy).nonzero()[:, 0].tolist()
        if not chosen:
            return images
        images = images.clone()
        generator = torch.Generator(images.device)
        for i in chosen:  # each from a seed of its own, so that processes that share a batch draw the same
            generator.manual_seed(int(seed[i].double() * 2**24))
            noise = torch.randn(images.shape[1:], generator=generator, device=images.device)
            images[i] += self.noise * float(deviation[i]) * noise
        return images
