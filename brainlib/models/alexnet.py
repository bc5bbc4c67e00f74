"""AlexNet as the study adapted it to slices of 128 pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class AlexNet(nn.Module):
    """Classify a slice: ``(B, 3, 128, 128)`` in [0, 1] to ``(B, num_classes)`` logits; 4,589,316 parameters.

    Five convolutions and four linear layers after Krizhevsky, Sutskever and Hinton (2012, doi 10.1145/3065386). The
    study's adaptation differs from the paper: a first kernel of 9 in place of 11, MaxPool of 2 in place of overlapping
    3, a head of 512, 512 and 128 units in place of 4096 and 4096, and neither dropout nor local response normalization.

    Args:
        num_classes: number of logits.
        activation: makes a fresh activation module for each place.

    Raises:
        ValueError: in ``forward``, for images that are not ``(B, 3, 128, 128)``.
    """

    def __init__(self, num_classes: int = 4, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(3, 96, 9, stride=4), activation(), nn.MaxPool2d(2))
        self.stage2 = nn.Sequential(nn.Conv2d(96, 256, 5), activation(), nn.MaxPool2d(2))
        self.stage3 = nn.Sequential(
            nn.Conv2d(256, 384, 3, padding=1),
            activation(),
            nn.Conv2d(384, 384, 3, padding=1),
            activation(),
            nn.Conv2d(384, 256, 3, padding=1),
            activation(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(256 * 2 * 2, 512),
            activation(),
            nn.Linear(512, 512),
            activation(),
            nn.Linear(512, 128),
            activation(),
            nn.Linear(128, num_classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1:] != (3, 128, 128):
            raise ValueError(f"AlexNet takes images of shape (B, 3, 128, 128), not {tuple(x.shape)}")
        x = self.stage1(x)  # (B, 96, 15, 15)
        x = self.stage2(x)  # (B, 256, 5, 5)
        x = self.stage3(x)  # (B, 256, 2, 2)
        return self.head(x)  # (B, num_classes)
