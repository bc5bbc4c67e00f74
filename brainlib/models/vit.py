"""The study's Vision Transformer, with its oddities, so that its numbers can be reproduced."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import nn

from brainlib.models.attention import PostNormLayer


class VisionTransformer(nn.Module):
    """Classify a slice: ``(B, 3, image_size, image_size)`` in [0, 1] to logits; 21,459,460 parameters as the study's.

    The image is cut into patches, each patch becomes a token, a class token is put before them, and after ``depth``
    encoder layers the class token alone is classified (Dosovitskiy et al. 2021, arXiv 2010.11929). The study's network
    differs from that paper in five places, all kept here: post-norm layers with ReLU; after each layer a second
    residual and one LayerNorm *shared* by all depths, ``x = norm(layer(x) + x)``; class token and positions drawn from
    N(0, 1); and a Dropout after the logits.

    Args:
        image_size: side of the square images in pixels.
        patch_size: side of a patch; it must divide ``image_size``.
        num_classes: number of logits.
        dim: length of a token.
        depth: number of encoder layers.
        heads: attention heads in each.
        mlp_dim: hidden units of each layer's perceptron.
        dropout: probability, in all places.
        head_dim: length of a head's queries; ``dim / heads`` if None.
        activation: makes a fresh activation module for each layer.

    Raises:
        ValueError: the patch size does not divide the image, or (in ``forward``) images of another shape.
    """

    def __init__(
        self,
        image_size: int = 128,
        patch_size: int = 16,
        num_classes: int = 4,
        dim: int = 512,
        depth: int = 10,
        heads: int = 8,
        mlp_dim: int = 1024,
        dropout: float = 0.2,
        head_dim: int | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        if patch_size < 1 or image_size % patch_size:
            raise ValueError(f"patch_size={patch_size} must divide image_size={image_size}")
        self.image_size, self.patch_size = image_size, patch_size
        patches = (image_size // patch_size) ** 2
        self.position = nn.Parameter(torch.empty(1, patches + 1, dim))
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.reset_parameters()
        self.project = nn.Linear(3 * patch_size**2, dim)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            PostNormLayer(dim, heads, mlp_dim, dropout, head_dim, activation) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes), nn.Dropout(dropout))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw positions and class token, the parameters that belong to no layer, from N(0, 1)."""
        self.position.copy_(torch.randn_like(self.position))
        self.class_token.copy_(torch.randn_like(self.class_token))

    def forward(
        self, x: torch.Tensor, return_attention: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits ``(B, num_classes)``; with ``return_attention`` also the weights of each layer, ``(B, heads, N, N)``.

        Token 0 is the class token; the others are the patches, row by row.
        """
        side, patch = self.image_size, self.patch_size
        if x.shape[1:] != (3, side, side):
            raise ValueError(f"VisionTransformer takes images of shape (B, 3, {side}, {side}), not {tuple(x.shape)}")
        x = rearrange(x, "b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=patch, p2=patch)  # (B, 64, 768)
        x = self.project(x)  # (B, 64, dim)
        x = torch.cat([self.class_token.expand(len(x), -1, -1).to(x.dtype), x], 1)  # (B, 65, dim)
        x = self.dropout(x + self.position)
        attention = []
        for layer in self.layers:
            mixed, weights = layer(x, return_attention)
            attention.append(weights)
            x = self.norm(mixed + x)  # one norm for all depths
        logits = self.head(x[:, 0])  # (B, num_classes)
        return (logits, attention) if return_attention else logits
