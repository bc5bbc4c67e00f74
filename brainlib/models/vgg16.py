"""VGG-16 as the study adapted it to slices of 128 pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class VGG16(nn.Module):
    """Classify a slice: ``(B, 3, 128, 128)`` in [0, 1] to ``(B, num_classes)`` logits; 65,070,916 parameters.

    Thirteen 3×3 convolutions in five blocks and three linear layers: configuration D of Simonyan and Zisserman (2015,
    arXiv 1409.1556). At 128 pixels the last block leaves 4×4 places in place of the paper's 7×7, so the first linear
    layer has 8,192 inputs in place of 25,088; all else is as published.

    Args:
        num_classes: number of logits.
        dropout: probability of dropping a unit after each hidden linear layer.
        activation: makes a fresh activation module for each place.

    Raises:
        ValueError: in ``forward``, for images that are not ``(B, 3, 128, 128)``.
    """

    def __init__(
        self, num_classes: int = 4, dropout: float = 0.5, activation: Callable[[], nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        self.block1 = _block(3, 64, 2, activation)
        self.block2 = _block(64, 128, 2, activation)
        self.block3 = _block(128, 256, 3, activation)
        self.block4 = _block(256, 512, 3, activation)
        self.block5 = _block(512, 512, 3, activation)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(512 * 4 * 4, 4096),
            activation(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            activation(),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1:] != (3, 128, 128):
            raise ValueError(f"VGG16 takes images of shape (B, 3, 128, 128), not {tuple(x.shape)}")
        x = self.block1(x)  # (B, 64, 64, 64)
        x = self.block2(x)  # (B, 128, 32, 32)
        x = self.block3(x)  # (B, 256, 16, 16)
        x = self.block4(x)  # (B, 512, 8, 8)
        x = self.block5(x)  # (B, 512, 4, 4)
        return self.head(x)  # (B, num_classes)


def _block(inputs: int, outputs: int, depth: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    """``depth`` convolutions that keep the size, each followed by an activation, then MaxPool 2."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Conv2d(inputs if i == 0 else outputs, outputs, 3, padding=1), activation()]
    return nn.Sequential(*layers, nn.MaxPool2d(2))
