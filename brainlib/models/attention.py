"""Multi-head self-attention and the two encoder layers built on it: post-norm (2017) and pre-norm (2020)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    """Every token asks all tokens: ``(B, N, dim)`` to ``(B, N, dim)`` and the weights of its questions.

    Each head computes ``softmax(q k^T / sqrt(head_dim)) v`` (Vaswani et al. 2017, arXiv 1706.03762, equation 1).

    Args:
        dim: length of a token.
        heads: number of heads.
        head_dim: length of queries, keys and values in a head; ``dim / heads`` if None.
        dropout: probability of dropping an attention weight.

    Raises:
        ValueError: ``head_dim`` is None and ``heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, heads: int, head_dim: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if head_dim is None and dim % heads:
            raise ValueError(f"heads={heads} does not divide dim={dim}: choose another number, or give head_dim")
        self.heads, self.dropout = heads, dropout
        inner = heads * (head_dim or dim // heads)
        self.qkv = nn.Linear(dim, 3 * inner)
        self.out = nn.Linear(inner, dim)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor, return_attention: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The new tokens ``(B, N, dim)``, and the weights ``(B, heads, N, N)`` if asked for, rows summing to 1."""
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if return_attention:
            weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)  # (B, heads, N, N)
            mixed = F.dropout(weights, dropout) @ v
        else:  # the same in one call, which never writes the N x N table to memory
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.out(rearrange(mixed, "b h n d -> b n (h d)")), weights


class PostNormLayer(nn.Module):
    """Encoder layer of Vaswani et al. (2017): attention, then a perceptron, each added and *then* normalized.

    Parameters come in the order of ``torch.nn.TransformerEncoderLayer``, so its weights fit by position.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_dim: int,
        dropout: float = 0.1,
        head_dim: int | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, heads, head_dim, dropout)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_dim), activation(), nn.Dropout(dropout), nn.Linear(mlp_dim, dim), nn.Dropout(dropout)
        )
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, return_attention: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        mixed, weights = self.attention(x, return_attention)
        x = self.norm1(x + self.dropout(mixed))
        x = self.norm2(x + self.mlp(x))
        return x, weights


class PreNormLayer(nn.Module):
    """Encoder layer of Dosovitskiy et al. (2021, arXiv 2010.11929): normalize *first*, then add what comes of it.

    The sum itself is never normalized, so a straight path of additions leads from the first token to the last layer.

    Args:
        drop_path: probability of leaving a branch out for an image in training (stochastic depth, Huang et al. 2016,
            arXiv 1603.09382).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_dim: int,
        dropout: float = 0.0,
        head_dim: int | None = None,
        activation: Callable[[], nn.Module] = nn.GELU,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads, head_dim, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_dim), activation(), nn.Dropout(dropout), nn.Linear(mlp_dim, dim), nn.Dropout(dropout)
        )
        self.drop_path = drop_path

    def forward(self, x: torch.Tensor, return_attention: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        mixed, weights = self.attention(self.norm1(x), return_attention)
        x = x + self._keep(mixed)
        x = x + self._keep(self.mlp(self.norm2(x)))
        return x, weights

    def _keep(self, branch: torch.Tensor) -> torch.Tensor:
        """The branch, in training zero for some images and larger for the others, so that its mean stays."""
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        drawn = torch.rand(len(branch), 1, 1, device=branch.device) < keep
        return branch * (drawn.to(branch.dtype) / keep)
