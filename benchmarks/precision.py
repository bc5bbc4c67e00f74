"""Training slices/s of the four segmenters in float32 and in bfloat16, in one run: which one does this machine want?

    python benchmarks/precision.py [--models compact_unet] [--batch 16] [--steps 3] [--threads 1]

A step is forward, loss, backward and optimizer on random slices, sized as in the course's recipe (twelve channels of
160 x 192 pixels). The first line names what a training takes by itself, by ``brainlib.train.automatic_precision``.

For teaching and research, not a medical device.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from time import perf_counter

import torch
from torch.optim import AdamW

from brainlib.losses import BCE
from brainlib.models import create_model
from brainlib.results import hardware
from brainlib.segmenters import SEGMENTER_RECIPES
from brainlib.train import automatic_precision, seed_everything

MODELS = ["classic_unet", "improved_unet", "attention_unet", "compact_unet"]
SHAPE = 12, 160, 192


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Training in float32 and in bfloat16, in slices per second.")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS, metavar="NAME", help="default: all")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="slices of a step (default: 16)")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="steps to time (default: 3)")
    parser.add_argument("--threads", type=int, metavar="N", help="default: as many as PyTorch takes")
    options = parser.parse_args(arguments)
    if min(options.batch, options.steps, options.threads or 1) < 1:
        parser.error("--batch, --steps and --threads must be positive")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"hardware: {hardware()}, {torch.get_num_threads()} threads; by itself: {automatic_precision()}", flush=True)
    for name in options.models:
        single, half = (speed(name, device, bfloat16, options.batch, options.steps) for bfloat16 in (False, True))
        print(f"{name}: float32 {single:.1f}, bfloat16 {half:.1f} slices/s; ratio {half / single:.2f}", flush=True)


def speed(name: str, device: torch.device, bfloat16: bool, batch: int, steps: int) -> float:
    """Slices/s of ``steps`` training steps, after two that are not counted."""
    seed_everything(0)
    model = create_model(name, **{**SEGMENTER_RECIPES[name].arguments, "in_channels": SHAPE[0]}).train()
    model.to(device, memory_format=torch.channels_last)
    optimizer, loss = AdamW(model.parameters(), fused=True), BCE()
    images = torch.randn(batch, *SHAPE, device=device).contiguous(memory_format=torch.channels_last)
    masks = (torch.rand(batch, 3, *SHAPE[1:], device=device) > 0.9).float()
    started = perf_counter()
    for step in range(steps + 2):
        if step == 2:
            started = perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            logits = model(images)
        value = loss((logits if torch.is_tensor(logits) else logits[0]).float(), masks)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        value.item()  # waits for the device
    return batch * steps / (perf_counter() - started)


if __name__ == "__main__":
    main()
