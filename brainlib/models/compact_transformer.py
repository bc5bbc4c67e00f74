"""A transformer that learns from few images: convolutions make its tokens, and no class token is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import nn

from brainlib.models.attention import PreNormLayer


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions whose result is added to what came in, ``(B, C, H, W)`` to the same (He et al. 2016,
    arXiv 1512.03385)."""

    def __init__(self, channels: int, activation: Callable[[], nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            activation(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.activation = activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(x + self.branch(x))


class CompactTransformer(nn.Module):
    """Classify a slice: ``(B, 3, image_size, image_size)`` in [0, 1] to ``(B, num_classes)`` logits.

    A compact convolutional transformer after Hassani et al. (2021, arXiv 2104.05704): a few convolutions in place of
    patches, so that neighbors and shifts need not be learned; pre-norm encoder layers with stochastic depth; and
    sequence pooling, a learned weighted mean of all tokens, in place of the class token. The tokenizer here is larger
    than the paper's: convolutions of stride 2 with BatchNorm, and residual blocks between them.

    Args:
        image_size: side of the square images in pixels, a multiple of 2 to the power of ``len(widths)``.
        num_classes: number of logits.
        widths: channels after each convolution of stride 2; the last is the length of a token.
        blocks: residual blocks after each of these convolutions.
        depth: number of encoder layers.
        heads: attention heads in each.
        mlp_ratio: hidden units of a layer's perceptron, as a multiple of the length of a token.
        dropout: probability in the perceptrons and of attention weights.
        drop_path: probability of leaving out a branch of the last layer; it rises linearly from 0 at the first.
        activation: makes a fresh activation module for each place.

    Raises:
        ValueError: a size that the strides do not divide, ``blocks`` of another length than ``widths``, or (in
            ``forward``) images of another shape.
    """

    def __init__(
        self,
        image_size: int = 128,
        num_classes: int = 4,
        widths: Sequence[int] = (32, 64, 128, 192),
        blocks: Sequence[int] = (0, 1, 1, 1),
        depth: int = 3,
        heads: int = 4,
        mlp_ratio: float = 2.0,
        dropout: float = 0.1,
        drop_path: float = 0.1,
        activation: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        stride = 2 ** len(widths)
        if image_size % stride:
            raise ValueError(f"image_size={image_size} must be a multiple of {stride}, the tokenizer's stride")
        if len(blocks) != len(widths):
            raise ValueError(f"blocks={tuple(blocks)} must hold one number for each of widths={tuple(widths)}")
        self.image_size = image_size
        layers: list[nn.Module] = []
        for inputs, outputs, count in zip((3, *widths[:-1]), widths, blocks, strict=True):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs)]
            layers += [activation(), *(ResidualBlock(outputs, activation) for _ in range(count))]
        self.tokenizer = nn.Sequential(*layers)
        dim = widths[-1]
        self.position = nn.Parameter(torch.empty(1, (image_size // stride) ** 2, dim))
        self.reset_parameters()
        rates = [drop_path * layer / max(1, depth - 1) for layer in range(depth)]
        self.layers = nn.ModuleList(
            PreNormLayer(dim, heads, int(mlp_ratio * dim), dropout, activation=activation, drop_path=rate)
            for rate in rates
        )
        self.norm = nn.LayerNorm(dim)
        self.pool = nn.Linear(dim, 1)
        self.head = nn.Linear(dim, num_classes)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the positions, the parameter that belongs to no layer, from N(0, 0.02²)."""
        self.position.copy_(0.02 * torch.randn_like(self.position))

    def forward(
        self, x: torch.Tensor, return_attention: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits ``(B, num_classes)``; with ``return_attention`` also the weights of each layer, ``(B, heads, N, N)``.

        The tokens are the places of the tokenizer's last map, row by row. The last entry of the list is the pooling,
        ``(B, 1, 1, N)``: how much each token counts in the answer.
        """
        side = self.image_size
        if x.shape[1:] != (3, side, side):
            raise ValueError(f"CompactTransformer takes images of shape (B, 3, {side}, {side}), not {tuple(x.shape)}")
        x = self.tokenizer(x)  # (B, dim, 8, 8)
        x = rearrange(x, "b d h w -> b (h w) d") + self.position  # (B, 64, dim)
        attention = []
        for layer in self.layers:
            x, weights = layer(x, return_attention)
            attention.append(weights)
        x = self.norm(x)
        share = self.pool(x).softmax(1)  # (B, 64, 1), sums to 1 over tokens
        attention.append(rearrange(share, "b n 1 -> b 1 1 n"))
        logits = self.head((share * x).sum(1))  # (B, num_classes)
        return (logits, attention) if return_attention else logits
