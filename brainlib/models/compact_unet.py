"""CompactUNet: the course's own segmenter, a small relative of nnU-Net's 2-D network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from brainlib.models.blocks import concatenate

NORMALIZATIONS = {"batch": nn.BatchNorm2d, "instance": partial(nn.InstanceNorm2d, affine=True)}


class ConvNormAct(nn.Sequential):
    """3×3 convolution, normalization, leaky ReLU; a stride of 2 halves H and W."""

    def __init__(self, inputs: int, outputs: int, normalization: str, stride: int = 1) -> None:
        super().__init__(
            # A bias would be taken away again by the normalization.
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            NORMALIZATIONS[normalization](outputs),
            nn.LeakyReLU(0.01, inplace=True),
        )


class PlainBlock(nn.Sequential):
    """Two units, one after the other; ``(B, inputs, H, W)`` to ``(B, outputs, H / stride, W / stride)``."""

    def __init__(self, inputs: int, outputs: int, normalization: str, stride: int = 1) -> None:
        super().__init__(
            ConvNormAct(inputs, outputs, normalization, stride), ConvNormAct(outputs, outputs, normalization)
        )


class ResidualBlock(nn.Module):
    """As `PlainBlock`, with a shortcut: what the two convolutions find is added to what came in.

    The shortcut (He et al. 2016, doi 10.1109/CVPR.2016.90) averages where the stride is 2, and matches the channels
    with a 1×1 convolution, as in the residual encoder of nnU-Net (Isensee et al. 2024, arXiv 2404.09556).
    """

    def __init__(self, inputs: int, outputs: int, normalization: str, stride: int = 1) -> None:
        super().__init__()
        norm = NORMALIZATIONS[normalization]
        self.unit = ConvNormAct(inputs, outputs, normalization, stride)
        self.last = nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), norm(outputs))
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(stride) if stride > 1 else nn.Identity(),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            norm(outputs),
        )
        self.activation = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.last(self.unit(x)) + self.shortcut(x))


class Up(nn.Module):
    """One step up: a transposed 2×2 convolution, the skip beside it, two convolutions."""

    def __init__(self, below: int, outputs: int, normalization: str) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(below, outputs, 2, stride=2)
        self.block = PlainBlock(2 * outputs, outputs, normalization)

    def forward(self, below: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` and ``(B, outputs, 2H, 2W)`` to ``(B, outputs, 2H, 2W)``."""
        return self.block(concatenate(self.up(below), skip))


class CompactUNet(nn.Module):
    """Outline regions: ``(B, in_channels, H, W)`` to logits ``(B, out_channels, H, W)``; 970,697 parameters.

    After nnU-Net (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z) with its later residual encoder (Isensee et al.
    2024, arXiv 2404.09556): strided convolutions in place of pooling, leaky ReLU, learned upsampling and deep
    supervision, with few channels. Two things are not nnU-Net's: batch normalization, and outputs that begin with a
    probability of ``prior`` everywhere (Lin et al. 2017, arXiv 1708.02002, section 4.1), so that no epochs are spent on
    learning that most pixels are no tumor.

    Args:
        in_channels: contrasts of the image, times the slices that are looked at.
        out_channels: masks, one logit each.
        widths: channels at full size and at each half of it.
        deep_supervision: in train mode, give logits at the three finest sizes as a list, the finest first.
        normalization: ``"batch"``, over the slices of a batch, or ``"instance"``, of each slice by itself.
        prior: probability of tumor, in (0, 1), that the outputs begin with, up to what their random weights add.
        residual: shortcuts around the blocks of the encoder; the decoder has none.

    Raises:
        ValueError: another normalization, or a ``prior`` that is no probability; in ``forward``, another number of
            channels, H or W that cannot be halved that often, or both no more than a single place of the coarsest level
            covers where one value would have to be normalized by itself.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64, 96, 128),
        deep_supervision: bool = True,
        normalization: str = "batch",
        prior: float = 0.01,
        residual: bool = True,
    ) -> None:
        super().__init__()
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization={normalization!r}: choose from {', '.join(NORMALIZATIONS)}")
        if not 0 < prior < 1:
            raise ValueError(f"prior={prior}: give a probability between 0 and 1, both excluded")
        self.normalization = normalization
        self.in_channels = in_channels
        self.deep_supervision = deep_supervision
        block = ResidualBlock if residual else PlainBlock
        inputs = [in_channels, *widths[:-1]]
        self.encoders = nn.ModuleList(
            block(before, width, normalization, stride=2 if level else 1)
            for level, (before, width) in enumerate(zip(inputs, widths, strict=True))
        )
        below = list(widths[:0:-1])
        self.decoders = nn.ModuleList(
            Up(low, width, normalization) for low, width in zip(below, widths[-2::-1], strict=True)
        )
        levels = min(3, len(widths) - 1) if deep_supervision else 1
        self.outputs = nn.ModuleList(nn.Conv2d(width, out_channels, 1) for width in widths[:levels])
        for output in self.outputs:
            nn.init.constant_(output.bias, math.log(prior / (1 - prior)))

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Logits; with deep supervision in train mode a list of them, of H and W, H/2 and W/2, H/4 and W/4."""
        factor = 2 ** (len(self.encoders) - 1)
        if x.ndim != 4 or x.shape[1] != self.in_channels or x.shape[2] % factor or x.shape[3] % factor or not x.numel():
            raise ValueError(
                f"CompactUNet takes images of shape (B, {self.in_channels}, H, W) with H and W multiples of {factor}, "
                f"not {tuple(x.shape)}"
            )
        alone = self.normalization == "instance" or (self.training and len(x) == 1)
        if alone and x.shape[2] == x.shape[3] == factor:
            raise ValueError(
                f"CompactUNet takes images with H or W of {2 * factor} or more, not {factor} × {factor}: its coarsest "
                f"level would have a single place, and {self.normalization} normalization needs two values"
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
