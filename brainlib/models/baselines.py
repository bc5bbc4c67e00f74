"""The two models that every table begins with: one linear layer, and a perceptron with two hidden layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn


class LinearClassifier(nn.Module):
    """One weight for each pixel and class: ``(B, C, H, W)`` in [0, 1] to ``(B, num_classes)`` logits.

    Channels are averaged first (the three of a gray slice are equal), so ``linear.weight`` has one picture for each
    class. 65,540 parameters at 128 pixels and 4 classes.

    Args:
        num_classes: number of logits.
        image_size: side of the square images in pixels.

    Raises:
        ValueError: in ``forward``, for images of another size.
    """

    def __init__(self, num_classes: int = 4, image_size: int = 128) -> None:
        super().__init__()
        self.image_size = image_size
        self.linear = nn.Linear(image_size**2, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(_gray_vector(self, x))  # (B, num_classes)


class MLP(nn.Module):
    """A multilayer perceptron on the pixels: ``(B, C, H, W)`` in [0, 1] to ``(B, num_classes)`` logits.

    It sees the image as a list: move every pixel of every image to another place, in the same way for all, and it
    learns exactly as well. 2,105,796 parameters at 128 pixels, widths 128 and 64, and 4 classes.

    Args:
        num_classes: number of logits.
        image_size: side of the square images in pixels.
        widths: units of each hidden layer.
        dropout: probability of dropping a unit after each hidden layer.
        activation: makes a fresh activation module for each hidden layer.

    Raises:
        ValueError: in ``forward``, for images of another size.
    """

    def __init__(
        self,
        num_classes: int = 4,
        image_size: int = 128,
        widths: Sequence[int] = (128, 64),
        dropout: float = 0.2,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        layers: list[nn.Module] = []
        before = image_size**2
        for width in widths:
            layers += [nn.Linear(before, width), activation(), nn.Dropout(dropout)]
            before = width
        self.layers = nn.Sequential(*layers, nn.Linear(before, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(_gray_vector(self, x))  # (B, num_classes)


def _gray_vector(model: LinearClassifier | MLP, x: torch.Tensor) -> torch.Tensor:
    """Mean over channels, as one row for each image; checked."""
    side = model.image_size
    if x.ndim != 4 or x.shape[2:] != (side, side):
        raise ValueError(f"{type(model).__name__} takes images of shape (B, C, {side}, {side}), not {tuple(x.shape)}")
    return x.mean(1).flatten(1)  # (B, side * side)
