"""What a scanner, a patient or a display may do to a slice: corruptions with a physical model, in five severities.

For testing classifiers, not for training them. Each corruption states the model that it follows and the strength of
each severity, so that "severity 3" has a unit. For teaching and research, not a medical device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from brainlib.files import DataError

Draws = torch.Tensor
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruption:
    """One kind of damage.

    Attributes:
        model: the formula that it follows, in words.
        unit: what the strengths count.
        strengths: that of severity 1 to 5, rising.
        draw: random numbers for one image of size (H, W), float32 on the CPU; those of all severities are alike, so
            that the same image under severity 4 is the one under severity 2 with more of the same.
        apply: float ``(B, C, H, W)`` in [0, 1], draws ``(B, ...)`` and the strength to the damaged images.
    """

    model: str
    unit: str
    strengths: tuple[float, float, float, float, float]
    draw: Callable[[int, int, torch.Generator | None], Draws]
    apply: Callable[[torch.Tensor, Draws, float], torch.Tensor]


def corrupt(images: torch.Tensor, kind: str, severity: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Damage a batch of slices.

    Every image has its own draw, and its channels share it (the three of a gray slice stay equal). The draws come from
    the CPU, image by image: a GPU damages alike, and so does any division into batches with one generator.

    Args:
        images: ``(B, C, H, W)``, uint8, or float in [0, 1]. They are left as they are.
        kind: one of `CORRUPTIONS`.
        severity: 1 (slight) to 5; `CORRUPTIONS` tells the strength of each.
        generator: a CPU generator; None for the global one.

    Returns:
        Damaged copies with the same shape, type and device, in the same range.

    Raises:
        DataError: no such kind or severity, or images of another shape, type or range.
    """
    if kind not in CORRUPTIONS:
        raise DataError(f"corrupt: there is no kind {kind!r}; choose one of {', '.join(CORRUPTIONS)}")
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise DataError(f"corrupt: severity is {severity!r}; it must be a whole number from 1 to 5")
    bytes_ = images.dtype == torch.uint8
    if images.ndim != 4 or not (bytes_ or images.is_floating_point()):
        raise DataError(
            f"corrupt: images are {images.dtype} of shape {tuple(images.shape)}; give uint8 or float (B, C, H, W)"
        )
    if len(images) == 0:
        return images.clone()
    if not bytes_ and not (0 <= images.amin() and images.amax() <= 1):  # nan fails as well
        raise DataError("corrupt: float images must lie in [0, 1]; divide bytes by 255")
    corruption = CORRUPTIONS[kind]
    height, width = images.shape[2:]
    draws = torch.stack([corruption.draw(height, width, generator) for _ in range(len(images))]).to(images.device)
    values = images.float() / 255 if bytes_ else images.float()
    values = corruption.apply(values, draws, corruption.strengths[int(severity) - 1]).clamp(0, 1)
    return (values * 255).round().to(torch.uint8) if bytes_ else values.to(images.dtype)


def _two_noises(height: int, width: int, generator: torch.Generator | None) -> Draws:
    return torch.randn(2, height, width, generator=generator)


def _rician(images: torch.Tensor, draws: Draws, sigma: float) -> torch.Tensor:
    real, imaginary = (sigma * draws[:, part : part + 1] for part in (0, 1))  # (B, 1, H, W)
    return torch.hypot(images + real, imaginary)


def _coefficients(height: int, width: int, generator: torch.Generator | None) -> Draws:
    return torch.randn(5, generator=generator)


def _bias(images: torch.Tensor, draws: Draws, factor: float) -> torch.Tensor:
    height, width = images.shape[2:]
    y = torch.linspace(-1, 1, height, device=images.device)[:, None].expand(height, width)
    x = torch.linspace(-1, 1, width, device=images.device)[None].expand(height, width)
    # Legendre polynomials of degree 1 and 2: nothing varies faster than a head is wide.
    basis = torch.stack([x, y, (3 * x**2 - 1) / 2, x * y, (3 * y**2 - 1) / 2])
    field = torch.einsum("bk,khw->bhw", draws, basis)
    field = field - field.mean((1, 2), keepdim=True)  # the geometric mean of the gain is 1
    field = field / field.abs().amax((1, 2), keepdim=True)  # and its largest deviation is `factor`, up or down
    return images * torch.exp(math.log(factor) * field)[:, None]


def _sign(height: int, width: int, generator: torch.Generator | None) -> Draws:
    return torch.where(torch.rand((), generator=generator) < 0.5, -1.0, 1.0)


def _rotate(images: torch.Tensor, draws: Draws, degrees: float) -> torch.Tensor:
    angle = math.radians(degrees) * draws
    height, width = images.shape[2:]
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # affine_grid counts both axes from -1 to 1, so an image that is not square needs the ratio of its sides.
    row1 = torch.stack([cos, -sin * height / width, zero], -1)
    row2 = torch.stack([sin * width / height, cos, zero], -1)
    grid = F.affine_grid(torch.stack([row1, row2], 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _gamma(images: torch.Tensor, draws: Draws, gamma: float) -> torch.Tensor:
    return images ** (gamma**draws).view(-1, 1, 1, 1)


CORRUPTIONS: dict[str, Corruption] = {
    "noise": Corruption(
        "Rician noise: the magnitude of a signal with Gaussian noise in its real and its imaginary part, "
        "|x + n1 + i n2| (Gudbjartsson and Patz 1995, doi 10.1002/mrm.1910340618)",
        "standard deviation of each part, as a share of white",
        (0.02, 0.04, 0.07, 0.11, 0.16),
        _two_noises,
        _rician,
    ),
    "bias field": Corruption(
        "receive-coil shading: a smooth gain multiplies the image, the exponential of a random polynomial of degree 2 "
        "with mean 0 (the multiplicative model of Sled, Zijdenbos and Evans 1998, doi 10.1109/42.668698); "
        "what exceeds white is cut off",
        "largest factor by which a place gets brighter or darker",
        (1.2, 1.4, 1.7, 2.1, 2.6),
        _coefficients,
        _bias,
    ),
    "rotation": Corruption(
        "a tilted head: a turn about the middle of the slice, to the left or right, read bilinearly; corners are black",
        "degrees",
        (4, 8, 14, 22, 32),
        _sign,
        _rotate,
    ),
    "contrast": Corruption(
        "another display curve: gray values in [0, 1] to the power gamma (darker) or 1/gamma (brighter)",
        "gamma",
        (1.2, 1.4, 1.7, 2.1, 2.6),
        _sign,
        _gamma,
    ),
}
