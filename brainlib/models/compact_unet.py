"""CompactUNet: the course's own segmenter, a small relative of nnU-Net's 2-D network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from brainlib.models.blocks import concatenate


class ConvNormAct(nn.Sequential):
    """3×3 convolution, instance normalization, leaky ReLU; a stride of 2 halves H and W."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            # A bias would be taken away again by the normalization.
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.InstanceNorm2d(outputs, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        )


class Up(nn.Module):
    """One step up: a transposed 2×2 convolution, the skip beside it, two convolutions."""

    def __init__(self, below: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(below, outputs, 2, stride=2)
        self.block = nn.Sequential(ConvNormAct(2 * outputs, outputs), ConvNormAct(outputs, outputs))

    def forward(self, below: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` and ``(B, outputs, 2H, 2W)`` to ``(B, outputs, 2H, 2W)``."""
        return self.block(concatenate(self.up(below), skip))


class CompactUNet(nn.Module):
    """Outline regions: ``(B, in_channels, H, W)`` to logits ``(B, out_channels, H, W)``; 948,969 parameters.

    After nnU-Net (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z): strided convolutions in place of pooling,
    instance normalization, leaky ReLU, learned upsampling and deep supervision, with few channels.

    Args:
        in_channels: contrasts of the image, times the slices that are looked at.
        out_channels: masks, one logit each.
        widths: channels at full size and at each half of it.
        deep_supervision: in train mode, give logits at the three finest sizes as a list, the finest first.

    Raises:
        ValueError: in ``forward``, for another number of channels, H or W that cannot be halved that often, or both no
            more than what a single place of the coarsest level covers: one value cannot be normalized.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64, 96, 128),
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.deep_supervision = deep_supervision
        inputs = [in_channels, *widths[:-1]]
        self.encoders = nn.ModuleList(
            nn.Sequential(ConvNormAct(before, width, stride=2 if level else 1), ConvNormAct(width, width))
            for level, (before, width) in enumerate(zip(inputs, widths, strict=True))
        )
        below = list(widths[:0:-1])
        self.decoders = nn.ModuleList(Up(low, width) for low, width in zip(below, widths[-2::-1], strict=True))
        levels = min(3, len(widths) - 1) if deep_supervision else 1
        self.outputs = nn.ModuleList(nn.Conv2d(width, out_channels, 1) for width in widths[:levels])

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Logits; with deep supervision in train mode a list of them, of H and W, H/2 and W/2, H/4 and W/4."""
        factor = 2 ** (len(self.encoders) - 1)
        if x.ndim != 4 or x.shape[1] != self.in_channels or x.shape[2] % factor or x.shape[3] % factor or not x.numel():
            raise ValueError(
                f"CompactUNet takes images of shape (B, {self.in_channels}, H, W) with H and W multiples of {factor}, "
                f"not {tuple(x.shape)}"
            )
        if x.shape[2] == x.shape[3] == factor:
            raise ValueError(
                f"CompactUNet takes images with H or W of {2 * factor} or more, not {factor} × {factor}: its coarsest "
                "level would have a single place, and instance normalization needs two"
            )
        skips = []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
        features = []
        for decoder, skip in zip(self.decoders, reversed(skips[:-1]), strict=True):
            x = decoder(x, skip)
            features.append(x)
        if self.training and self.deep_supervision:
            return [output(feature) for output, feature in zip(self.outputs, reversed(features), strict=False)]
        return self.outputs[0](x)
