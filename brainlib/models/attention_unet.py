"""AttentionUNet: ImprovedUNet whose skips pass a gate that the decoder steers."""

from __future__ import annotations

import torch
from torch import nn

from brainlib.models.blocks import Activation, AttentionGate, Norm
from brainlib.models.improved_unet import ImprovedUNet


class AttentionUNet(ImprovedUNet):
    """Outline regions: ``(B, in_channels, H, W)`` to logits ``(B, out_channels, H, W)``; 3,258,263 parameters.

    Takes the arguments of `ImprovedUNet`. The gates are made last: with one seed, all other weights begin as those of
    an `ImprovedUNet`.
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
        super().__init__(in_channels, out_channels, n_filters, activation, kernel_size, norm)
        n = n_filters
        self.gate1 = AttentionGate(n, activation)
        self.gate2 = AttentionGate(2 * n, activation)
        self.gate3 = AttentionGate(4 * n, activation)
        self.gate4 = AttentionGate(8 * n, activation)

    def forward(
        self, x: torch.Tensor, return_attention: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits; with ``return_attention`` also the maps of gates 1 to 4, in (0, 1), as the gates make them.

        The maps have the shapes ``(B, 1, H/2, W/2)``, ``(B, 1, H/4, W/4)``, ``(B, 1, H/8, W/8)`` and
        ``(B, 1, H/16, W/16)``.
        """
        e1, e2, e3, e4, bottom = self.encode(x)
        s4, a4 = self.gate4(bottom, e4)
        d4 = self.decoder4(bottom, s4)
        s3, a3 = self.gate3(d4, e3)
        d3 = self.decoder3(d4, s3)
        s2, a2 = self.gate2(d3, e2)
        d2 = self.decoder2(d3, s2)
        s1, a1 = self.gate1(d2, e1)
        d1 = self.decoder1(d2, s1)
        logits = self.output(d1)
        return (logits, [a1, a2, a3, a4]) if return_attention else logits
