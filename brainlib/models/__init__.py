"""The reference models, and a registry that makes them by name. All return raw logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from brainlib.files import DataError
from brainlib.models.alexnet import AlexNet
from brainlib.models.attention_unet import AttentionUNet
from brainlib.models.baselines import MLP, LinearClassifier
from brainlib.models.classic_unet import ClassicUNet
from brainlib.models.compact_transformer import CompactTransformer
from brainlib.models.compact_unet import CompactUNet
from brainlib.models.custom_cnn import CustomCNN
from brainlib.models.improved_unet import ImprovedUNet
from brainlib.models.vgg16 import VGG16
from brainlib.models.vit import VisionTransformer
from brainlib.modes import evaluating

_MODELS: dict[str, Callable[..., nn.Module]] = {
    "alexnet": AlexNet,
    "attention_unet": AttentionUNet,
    "classic_unet": ClassicUNet,
    "compact_transformer": CompactTransformer,
    "compact_unet": CompactUNet,
    "custom_cnn": CustomCNN,
    "improved_unet": ImprovedUNet,
    "linear": LinearClassifier,
    "mlp": MLP,
    "vgg16": VGG16,
    "vit": VisionTransformer,
}

__all__ = [
    "MLP",
    "VGG16",
    "AlexNet",
    "AttentionUNet",
    "ClassicUNet",
    "CompactTransformer",
    "CompactUNet",
    "CustomCNN",
    "ImprovedUNet",
    "LinearClassifier",
    "VisionTransformer",
    "count_multiply_adds",
    "count_parameters",
    "create_model",
    "list_models",
]


def list_models() -> list[str]:
    """Names that `create_model` knows, sorted."""
    return sorted(_MODELS)


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """Make a model by name, with fresh random weights; keyword arguments go to its class.

    Raises:
        DataError: no model has that name; the message lists those that exist.
    """
    if name not in _MODELS:
        raise DataError(f"unknown model {name!r}; the models are: {', '.join(list_models())}")
    return _MODELS[name](**kwargs)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable scalars. Running statistics of BatchNorm are buffers and do not count."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@torch.no_grad()
def count_multiply_adds(model: nn.Module, shape: tuple[int, ...] = (1, 3, 128, 128)) -> int:
    """Multiplications of convolutions, linear layers and attention in one forward pass of an input of that shape."""
    counter = FlopCounterMode(display=False)
    # The counter does not know the CPU's attention in one piece; as two matrix products it is counted on each device.
    with evaluating(model), counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(shape, device=next(model.parameters()).device))
    return counter.get_total_flops() // 2  # it counts a multiplication and an addition as two
