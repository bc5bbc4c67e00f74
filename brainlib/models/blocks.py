"""The parts that the three U-Nets are put together from, and the path through them that they share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from brainlib.models.depthwise import DepthwiseConv2d

Activation = Callable[[], nn.Module]
Norm = Callable[[int], nn.Module]
Join = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def upsample(x: torch.Tensor) -> torch.Tensor:
    """``(B, C, H, W)`` to ``(B, C, 2H, 2W)``, bilinear and without weights; corner pixels keep their values."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def concatenate(x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    """``(B, C, H, W)`` and ``(B, D, H, W)`` to ``(B, C + D, H, W)``: the decoder's feature first, then the skip."""
    return torch.cat([x, skip], 1)


class DoubleConv(nn.Sequential):
    """Two (3×3 convolution, activation), ``inputs`` to ``middle`` to ``outputs`` channels; H and W stay."""

    def __init__(self, inputs: int, middle: int, outputs: int, activation: Activation = nn.ReLU) -> None:
        super().__init__(
            nn.Conv2d(inputs, middle, 3, padding=1),
            activation(),
            nn.Conv2d(middle, outputs, 3, padding=1),
            activation(),
        )


class SeparableUnit(nn.Sequential):
    """Depthwise convolution, normalization, 1×1 expansion, activation, 1×1 projection; H and W stay.

    Space is mixed within each channel, channels are mixed at each pixel (Chollet 2017, arXiv 1610.02357). The order of
    the layers and the wide middle are those of ConvNeXt (Liu et al. 2022, arXiv 2201.03545), without its residual and
    with BatchNorm. The unit ends linear.

    Args:
        inputs, hidden, outputs: channels before, between and after the two 1×1 convolutions.
        kernel_size: of the depthwise convolution, odd.
        norm: makes the normalization from the number of channels.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        activation: Activation = nn.ReLU,
        kernel_size: int = 7,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__(
            DepthwiseConv2d(inputs, kernel_size),
            norm(inputs),
            nn.Conv2d(inputs, hidden, 1),
            activation(),
            nn.Conv2d(hidden, outputs, 1),
        )


class SeparableBlock(nn.Sequential):
    """Two separable units: ``inputs`` to ``hidden`` to ``outputs``, then ``outputs`` to 4·``outputs`` and back."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        activation: Activation = nn.ReLU,
        kernel_size: int = 7,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__(
            SeparableUnit(inputs, hidden, outputs, activation, kernel_size, norm),
            SeparableUnit(outputs, 4 * outputs, outputs, activation, kernel_size, norm),
        )


class Decoder(nn.Module):
    """One step up: upsample what comes from below, join it with the skip, run the block.

    Args:
        block: takes what ``join`` gives.
        join: `concatenate`, or ``torch.add``.
    """

    def __init__(self, block: nn.Module, join: Join) -> None:
        super().__init__()
        self.block = block
        self.join = join

    def forward(self, below: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` and ``(B, D, 2H, 2W)`` to ``(B, outputs, 2H, 2W)``."""
        return self.block(self.join(upsample(below), skip))

    def extra_repr(self) -> str:
        return f"join={getattr(self.join, '__name__', self.join)}"


class AttentionGate(nn.Module):
    """Weigh each place of a skip by how well it fits what the decoder knows.

    After Oktay et al. 2018 (arXiv 1804.03999). The query comes from the decoder, one level lower; the key from the
    skip, brought to the same size by a stride. Their sum, an activation, one 1×1 convolution and a sigmoid give one
    number in (0, 1) a place: the attention map.
    """

    def __init__(self, channels: int, activation: Activation = nn.ReLU) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.activation = activation()
        self.score = nn.Conv2d(channels, 1, 1)

    def forward(self, below: torch.Tensor, skip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(B, C, H, W)`` and skip ``(B, C, 2H, 2W)`` to the weighed skip and the map ``(B, 1, H, W)``."""
        # A 1×1 convolution of stride 2 looks at every second row and column alone. Taken first, they give the same, and
        # avoid a backward pass that crashes on CPUs (torch 2.13, channels_last, fewer than 16 channels).
        key = self.key(skip[:, :, ::2, ::2])
        attention = torch.sigmoid(self.score(self.activation(self.query(below) + key)))
        return skip * upsample(attention), attention


class UNet(nn.Module):
    """The path that all U-Nets share (Ronneberger et al. 2015, arXiv 1505.04597); a subclass makes the parts.

    A subclass defines, in this order, ``encoder1`` to ``encoder4``, ``bottleneck``, ``decoder4`` to ``decoder1`` (each
    a `Decoder`) and ``output``.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The features of the four encoders, at full size to an eighth, and of the bottleneck, at a sixteenth.

        Raises:
            ValueError: images that are not ``(B, in_channels, H, W)``, or H or W not a multiple of 16.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels or x.shape[2] % 16 or x.shape[3] % 16 or 0 in x.shape[2:]:
            raise ValueError(
                f"{type(self).__name__} takes images of shape (B, {self.in_channels}, H, W) with H and W multiples "
                f"of 16 (it halves them four times), not {tuple(x.shape)}"
            )
        e1 = self.encoder1(x)
        e2 = self.encoder2(F.max_pool2d(e1, 2))
        e3 = self.encoder3(F.max_pool2d(e2, 2))
        e4 = self.encoder4(F.max_pool2d(e3, 2))
        return e1, e2, e3, e4, self.bottleneck(F.max_pool2d(e4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        e1, e2, e3, e4, bottom = self.encode(x)
        d4 = self.decoder4(bottom, e4)
        d3 = self.decoder3(d4, e3)
        d2 = self.decoder2(d3, e2)
        d1 = self.decoder1(d2, e1)
        return self.output(d1)
