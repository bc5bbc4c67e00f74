"""Where a model is, in which mode, and how exactly it computes: for a while, and then as before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import chain

import torch
from torch import nn


@contextlib.contextmanager
def on_device(module: nn.Module, device: torch.device | str) -> Iterator[None]:
    """Put a module on ``device``; afterwards, whatever happens in between, it is back where its first tensor was.

    Moves are made outside `torch.inference_mode`: a weight that is moved within it could never be trained again.
    """
    home = next((tensor.device for tensor in chain(module.parameters(), module.buffers())), None)
    with torch.inference_mode(False):
        module.to(device)
    try:
        yield
    finally:
        if home is not None:
            with torch.inference_mode(False):
                module.to(home)


@contextlib.contextmanager
def evaluating(model: nn.Module, device: torch.device | str | None = None) -> Iterator[None]:
    """Evaluation mode, on ``device`` if given; afterwards every module is in the mode that it was in, and in its place.

    A frozen layer, in evaluation mode while its model is trained, stays frozen.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with contextlib.nullcontext() if device is None else on_device(model, device):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def exact_float32(precision: str) -> Iterator[None]:
    """Let float32 be float32 where ``precision`` is ``"32-true"``; other formats change nothing.

    On GPUs since 2020 PyTorch rounds the inputs of float32 convolutions to 10 bits (TF32) unless told otherwise.
    """
    if precision != "32-true":
        yield
        return
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)
