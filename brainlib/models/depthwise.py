"""Depthwise convolution whose weights learn quickly on a CPU as well."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight


class DepthwiseConv2d(nn.Conv2d):
    """Convolve each channel with a kernel of its own, ``(B, C, H, W)`` to ``(B, C, H, W)``.

    It is ``nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)``: the same weights,
    the same outputs, the same gradients. On a CPU the gradient of larger kernels than 3 x 3 takes another way, see
    `_Depthwise`.

    Args:
        channels: before and after.
        kernel_size: odd, so that H and W stay.

    Raises:
        ValueError: an even ``kernel_size``.
    """

    def __init__(self, channels: int, kernel_size: int = 7) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: take an odd one, so that height and width stay as they are")
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # One channel is an ordinary convolution, compilers trace the operations that they know, and up to 3 x 3 the
        # libraries are quick by themselves.
        ordinary = x.device.type != "cpu" or x.ndim != 4 or self.groups == 1 or torch.compiler.is_compiling()
        if ordinary or self.kernel_size[0] <= 3:
            return super().forward(x)
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:
            x, weight, bias = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (x, weight, bias))
        return _Depthwise.apply(x, weight, bias)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution with the gradient of its weights read off a convolution that mixes channels.

    CPU libraries have quick kernels for the gradient of a dense convolution and none for a depthwise one beyond 3 x 3.
    A dense one over a few neighboring channels holds, among its gradients, those of each channel with itself, and these
    are what is wanted. The others are thrown away: 8 or 16 times the multiplications, in a fraction of the time.
    """

    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def setup_context(ctx, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        # Each input pixel reached its outputs through the kernel; they answer through the kernel turned by 180 degrees.
        return (
            _Depthwise.forward(gradient, weight.flip(2, 3), None) if for_x else None,
            _weight_gradient(x, gradient, weight.shape[-1]) if for_weight else None,
            gradient.sum((0, 2, 3)) if for_bias else None,
        )


def _block() -> int:
    """Channels that the processor's quick kernels take together: as many float32 numbers as one register holds."""
    return 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8


def _weight_gradient(x: torch.Tensor, gradient: torch.Tensor, k: int, largest: int | None = None) -> torch.Tensor:
    """Gradient of depthwise weights ``(C, 1, k, k)``: the diagonal of dense ones over blocks of channels."""
    channels = x.shape[1]
    block = next(size for size in range(min(largest or _block(), channels), 0, -1) if channels % size == 0)
    dense = conv2d_weight(x, (channels, block, k, k), gradient, padding=k // 2, groups=channels // block)
    own = dense.view(-1, block, block, k, k).diagonal(dim1=1, dim2=2)  # (C / block, k, k, block)
    return own.movedim(-1, 1).reshape(channels, 1, k, k)
