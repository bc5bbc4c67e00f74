"""ClassicUNet: 3×3 convolutions, and skips that are concatenated."""

from __future__ import annotations

from torch import nn

from brainlib.models.blocks import Activation, Decoder, DoubleConv, UNet, concatenate


class ClassicUNet(UNet):
    """Outline regions: ``(B, in_channels, H, W)`` to logits ``(B, out_channels, H, W)``; 5,496,451 parameters.

    After Ronneberger et al. 2015 (arXiv 1505.04597), narrower, with padded convolutions and bilinear upsampling.

    Args:
        in_channels: contrasts of the image.
        out_channels: masks, one logit each.
        n_filters: channels at full size; the four levels below have 2, 4, 8 and 8 times as many.
        activation: makes a fresh activation module for each place.

    Raises:
        ValueError: in ``forward``, for another number of channels, or H or W not a multiple of 16.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 3,
        n_filters: int = 32,
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__(in_channels)
        n = n_filters
        self.encoder1 = DoubleConv(in_channels, n, n, activation)
        self.encoder2 = DoubleConv(n, 2 * n, 2 * n, activation)
        self.encoder3 = DoubleConv(2 * n, 4 * n, 4 * n, activation)
        self.encoder4 = DoubleConv(4 * n, 8 * n, 8 * n, activation)
        self.bottleneck = DoubleConv(8 * n, 16 * n, 8 * n, activation)
        # A decoder's block takes twice the channels: those from below, and the skip.
        self.decoder4 = Decoder(DoubleConv(16 * n, 8 * n, 4 * n, activation), concatenate)
        self.decoder3 = Decoder(DoubleConv(8 * n, 4 * n, 2 * n, activation), concatenate)
        self.decoder2 = Decoder(DoubleConv(4 * n, 2 * n, n, activation), concatenate)
        self.decoder1 = Decoder(DoubleConv(2 * n, n, n, activation), concatenate)
        self.output = nn.Conv2d(n, out_channels, 1)
