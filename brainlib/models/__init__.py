"""The reference models, and a registry that makes them by name. All return raw logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from brainlib.files import DataError
from brainlib.models.custom_cnn import CustomCNN

_MODELS: dict[str, Callable[..., nn.Module]] = {"custom_cnn": CustomCNN}

__all__ = ["CustomCNN", "count_parameters", "create_model", "list_models"]


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
