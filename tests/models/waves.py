"""Weights and an image without chance: what the golden outputs of the classifiers were computed from."""

import numpy as np
import torch
from torch import nn

PERIOD = 1_000_003  # prime, so that no two layers have their waves in step
WAVE = torch.from_numpy(np.sin(0.7 * np.arange(PERIOD) ** 1.1))
NORMS = nn.LayerNorm | nn.BatchNorm2d


def wave_weights(model: nn.Module) -> nn.Module:
    """Weights that follow from their position alone, of the size that keeps a signal alive through ReLU layers."""
    scales = {id(module.weight) for module in model.modules() if isinstance(module, NORMS)}
    position = 0
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            count = tensor.numel()
            wave = WAVE.to(tensor.dtype).repeat(count // PERIOD + 2)[position % PERIOD :][:count]
            position += count
            tensor.copy_(wave.view_as(tensor))
            if tensor.ndim > 1 and name not in ("position", "class_token"):
                tensor.mul_(2 / tensor[0].numel() ** 0.5)
            elif tensor.ndim == 1:
                tensor.mul_(0.2).add_(id(tensor) in scales or name.endswith("running_var"))
    return model


def golden_image(size: int = 128) -> torch.Tensor:
    """Smooth, different in each channel, not symmetric; float64 ``(1, 3, size, size)`` in [0, 1]."""
    x = torch.arange(size, dtype=torch.float64)
    picture = 0.5 + 0.5 * torch.sin(x[:, None] / 9) * torch.cos(x[None] / 7)
    return torch.stack([picture, picture.flip(1) ** 2, picture.T * 0.5])[None]
