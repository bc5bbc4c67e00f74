"""CustomCNN: the study's own network, four convolutions and three linear layers with BatchNorm and Mish."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class CustomCNN(nn.Module):
    """Classify a slice: ``(B, 3, 128, 128)`` in [0, 1] to ``(B, num_classes)`` logits; 3,001,156 parameters.

    Args:
        num_classes: number of logits.
        dropout: probability of dropping a unit after each hidden linear layer.
        activation: makes a fresh activation module for each place, Mish by default (Misra 2020, arXiv 1908.08681).
        norm: makes the normalization of a stage from its channels, BatchNorm by default (Ioffe and Szegedy 2015,
            arXiv 1502.03167). ``nn.Identity`` leaves it out, for the ablation of chapter 5.

    Raises:
        ValueError: in ``forward``, for images that are not ``(B, 3, 128, 128)``.
    """

    def __init__(
        self,
        num_classes: int = 4,
        dropout: float = 0.4,
        activation: Callable[[], nn.Module] = nn.Mish,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(3, 96, 9, stride=4), norm(96), activation(), nn.MaxPool2d(2))
        self.stage2 = nn.Sequential(nn.Conv2d(96, 256, 5), norm(256), activation(), nn.MaxPool2d(2))
        self.stage3 = nn.Sequential(nn.Conv2d(256, 384, 3, padding=1), norm(384), activation())
        self.stage4 = nn.Sequential(nn.Conv2d(384, 256, 3, padding=1), norm(256), activation(), nn.MaxPool2d(2))
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(256 * 2 * 2, 512),
            activation(),
            nn.Dropout(dropout),
            nn.Linear(512, 128),
            activation(),
            nn.Dropout(dropout),
            nn.Linear(128, num_classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1:] != (3, 128, 128):
            raise ValueError(f"CustomCNN takes images of shape (B, 3, 128, 128), not {tuple(x.shape)}")
        x = self.stage1(x)  # (B, 96, 15, 15)
        x = self.stage2(x)  # (B, 256, 5, 5)
        x = self.stage3(x)  # (B, 384, 5, 5)
        x = self.stage4(x)  # (B, 256, 2, 2)
        return self.head(x)  # (B, num_classes)
