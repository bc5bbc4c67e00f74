"""Losses of segmentation, from logits and masks to one number to be made small.

Each takes logits ``(B, C, ...)`` of any number of spatial axes and masks of the same shape (bool, integers 0 and 1, or
float), one independent mask a channel, and returns a scalar. Below, z is a logit, p its sigmoid and t the mask. Sums
are in float32 at least, whatever the format of the logits: near 1,000 pixels, bfloat16 knows only every fourth number.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class _MaskLoss(nn.Module):
    """Checks and converts once, and leaves autocast, so that a loss is written as its equation."""

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Scalar loss of logits ``(B, C, ...)`` and masks of the same shape.

        Raises:
            ValueError: the shapes differ, or have no spatial axis.
        """
        if logits.shape != targets.shape or logits.ndim < 3:
            raise ValueError(
                f"{type(self).__name__} takes logits and masks of one shape (B, C, ...), not {tuple(logits.shape)} "
                f"and {tuple(targets.shape)}"
            )
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            return self.compute(logits, targets.to(logits.dtype))

    def compute(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class BCE(_MaskLoss):
    """Binary cross entropy, the mean over all pixels of all channels and items; the study's loss.

    L = mean(-t log p - (1 - t) log(1 - p)) = mean(softplus(z) - t z), which is also how it is computed: the logarithm
    of a sigmoid that rounds to 0 never occurs. An empty mask is an ordinary case: every pixel pulls its logit down.
    """

    def compute(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(logits, targets)


class SoftDice(_MaskLoss):
    """One minus the Dice coefficient of probabilities, in [0, 1]: one for each item and channel, then the mean.

    L = 1 - (2 Σ p t + s) / (Σ p + Σ t + s), sums over the pixels of one item and channel; after Milletari et al. 2016
    (arXiv 1606.04797), with Σ p in place of their Σ p².

    An empty mask gives L = 1 - s / (Σ p + s): 0 for an empty prediction, nearly 1 for one of many more than s pixels.
    With a small s that loss is nearly flat, and an item without tumor teaches next to nothing.

    Args:
        smooth: s, in pixels; above 0.
    """

    def __init__(self, smooth: float = 1.0) -> None:
        super().__init__()
        self.smooth = _positive("smooth", smooth)

    def compute(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.from_sums(*_sums(logits.sigmoid(), targets)).mean()

    def from_sums(self, both: torch.Tensor, predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Losses from Σ p t, Σ p and Σ t, of any one shape."""
        return 1 - (2 * both + self.smooth) / (predicted + true + self.smooth)

    def extra_repr(self) -> str:
        return f"smooth={self.smooth:g}"


class BatchDice(SoftDice):
    """`SoftDice` with sums over the whole batch: one for each channel, then the mean over the channels.

    A slice without tumor then shares its denominator with slices that have some, as in nnU-Net (Isensee et al. 2021,
    doi 10.1038/s41592-020-01008-z). A channel that is empty in the whole batch is treated as in `SoftDice`.

    Where several processes share a batch, each adds up its own share alone: the mean of their losses is not the loss
    of the whole batch, so a network trained by two processes is not quite that of one.
    """

    def compute(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        both, predicted, true = (part.sum(0) for part in _sums(logits.sigmoid(), targets))
        return self.from_sums(both, predicted, true).mean()


class DiceBCE(_MaskLoss):
    """The sum of a Dice loss and binary cross entropy: L = w · Dice + BCE.

    BCE has a gradient at every pixel, Dice does not let the background outvote a lesion; nnU-Net adds the two (Isensee
    et al. 2021, doi 10.1038/s41592-020-01008-z). Empty masks: as in the parts.

    Args:
        dice: `SoftDice` by default, or `BatchDice`.
        weight: w, 0 or more.
    """

    def __init__(self, dice: SoftDice | None = None, weight: float = 1.0) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight={weight}: it must be 0 or more")
        self.dice = SoftDice() if dice is None else dice
        self.weight = weight

    def compute(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.weight * self.dice(logits, targets) + F.binary_cross_entropy_with_logits(logits, targets)

    def extra_repr(self) -> str:
        return f"weight={self.weight:g}"


class Focal(_MaskLoss):
    """Cross entropy that all but ignores what is already right (Lin et al. 2017, arXiv 1708.02002, equation 5).

    With q = p where t = 1 and q = 1 - p where t = 0: L = mean(-a (1 - q)^γ log q), over all pixels, channels and items
    (the paper divides by the number of objects instead). The mask must be 0 or 1. An empty mask is an ordinary case,
    as for `BCE`.

    Args:
        gamma: γ, 0 or more; 0 gives BCE, weighted.
        alpha: a where t = 1, with 1 - ``alpha`` where t = 0; None weighs both 1.
    """

    def __init__(self, gamma: float = 2.0, alpha: float | None = 0.25) -> None:
        super().__init__()
        if gamma < 0 or not (alpha is None or 0 <= alpha <= 1):
            raise ValueError(f"gamma={gamma}, alpha={alpha}: gamma must be 0 or more, alpha from 0 to 1, or None")
        self.gamma = gamma
        self.alpha = alpha

    def compute(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        toward = torch.where(targets > 0.5, logits, -logits)  # q = sigmoid(toward)
        # (1 - q)^γ through its logarithm: a power has no finite slope at 0, which 1 - q reaches by rounding.
        values = torch.exp(-self.gamma * F.softplus(toward)) * F.softplus(-toward)
        if self.alpha is not None:
            values = values * (self.alpha * targets + (1 - self.alpha) * (1 - targets))
        return values.mean()

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}, alpha={self.alpha}"


class Tversky(_MaskLoss):
    """Dice with a price for each kind of error (Salehi et al. 2017, arXiv 1706.05721), in [0, 1].

    L = 1 - (TP + s) / (TP + α FP + β FN + s) with TP = Σ p t, FP = Σ p (1 - t) and FN = Σ (1 - p) t over the pixels of
    one item and channel; then the mean over both. α = β = 0.5 is `SoftDice` with twice the s. An empty mask gives
    1 - s / (α Σ p + s).

    Args:
        alpha: α, the price of a false positive.
        beta: β, the price of a false negative.
        smooth: s, in pixels; above 0.
    """

    def __init__(self, alpha: float = 0.3, beta: float = 0.7, smooth: float = 1.0) -> None:
        super().__init__()
        if alpha < 0 or beta < 0:
            raise ValueError(f"alpha={alpha}, beta={beta}: both must be 0 or more")
        self.alpha, self.beta, self.smooth = alpha, beta, _positive("smooth", smooth)

    def compute(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        both, predicted, true = _sums(logits.sigmoid(), targets)
        errors = self.alpha * (predicted - both) + self.beta * (true - both)
        return (1 - (both + self.smooth) / (both + errors + self.smooth)).mean()

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}, beta={self.beta:g}, smooth={self.smooth:g}"


class DeepSupervision(nn.Module):
    """A loss at several sizes at once (Lee et al. 2015, arXiv 1409.5185), as in nnU-Net.

    L = Σ wₖ loss(logits of level k, mask brought to its size) with w = 1, 1/2, 1/4, ..., divided by their sum. Logits
    that are no list, as in evaluation, get the plain loss.

    Args:
        loss: takes logits and masks of one shape.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: torch.Tensor | list[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        """Scalar loss of logits, or a list of them from the finest to the coarsest, and masks of the finest size."""
        if isinstance(outputs, torch.Tensor):
            return self.loss(outputs, targets)
        total = 0.0
        for level, logits in enumerate(outputs):
            masks = targets.float()
            if level:  # by the nearest pixel, so that a mask stays 0 or 1
                masks = F.interpolate(masks, logits.shape[2:], mode="nearest-exact")
            total = total + self.loss(logits, masks) / 2**level
        return total / sum(1 / 2**level for level in range(len(outputs)))


def _sums(p: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Σ p t, Σ p and Σ t over the pixels of each item and channel, ``(B, C)``."""
    return tuple(values.flatten(2).sum(-1) for values in (p * t, p, t))


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name}={value}: it must be above 0, or two empty masks would divide 0 by 0")
    return value
