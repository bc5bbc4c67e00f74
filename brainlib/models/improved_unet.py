"""ImprovedUNet: depthwise separable 7×7 convolutions with BatchNorm, and skips that are added."""

from __future__ import annotations

import torch
from torch import nn

from brainlib.models.blocks import Activation, Decoder, Norm, SeparableBlock, UNet


class ImprovedUNet(UNet):
    """Outline regions: ``(B, in_channels, H, W)`` to logits ``(B, out_channels, H, W)``; 3,082,739 parameters.

    Blocks end linear: what is added to a skip may be negative.

    Args:
        in_channels: contrasts of the image.
        out_channels: masks, one logit each.
        n_filters: channels at full size; the four levels below have 2, 4, 8 and 8 times as many.
        activation: makes a fresh activation module for each place.
        kernel_size, norm: of every unit, for the ablation of chapter 12.

    Raises:
        ValueError: in ``forward``, for another number of channels, or H or W not a multiple of 16.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 3,
        n_filters: int = 32,
        activation: Activation = nn.ReLU,
        kernel_size: int = 7,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__(in_channels)
        n, options = n_filters, (activation, kernel_size, norm)
        # Going down, the hidden width is 4 times the output; going up, 4 times the input.
        self.encoder1 = SeparableBlock(in_channels, 4 * n, n, *options)
        self.encoder2 = SeparableBlock(n, 8 * n, 2 * n, *options)
        self.encoder3 = SeparableBlock(2 * n, 16 * n, 4 * n, *options)
        self.encoder4 = SeparableBlock(4 * n, 32 * n, 8 * n, *options)
        self.bottleneck = SeparableBlock(8 * n, 32 * n, 8 * n, *options)
        self.decoder4 = Decoder(SeparableBlock(8 * n, 32 * n, 4 * n, *options), torch.add)
        self.decoder3 = Decoder(SeparableBlock(4 * n, 16 * n, 2 * n, *options), torch.add)
        self.decoder2 = Decoder(SeparableBlock(2 * n, 8 * n, n, *options), torch.add)
        self.decoder1 = Decoder(SeparableBlock(n, 4 * n, n, *options), torch.add)
        self.output = nn.Conv2d(n, out_channels, 1)
