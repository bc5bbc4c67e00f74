"""Speed of the U-Nets, training and inference: brainlib's store and loop beside a plain pipeline, in one run.

    python benchmarks/segmenters.py [--models NAME...] [--slices N] [--seconds S]

README.md beside this file says how to read the numbers.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from brats_store import data_folder, read_slice, write_slices  # beside this file

from brainlib.data import SegmentationData
from brainlib.data.brats import load_brats
from brainlib.results import hardware
from brainlib.segmentation import slice_dice
from brainlib.segmenters import SEGMENTER_RECIPES, SegmenterRecipe, get_segmenter_recipe, outline
from brainlib.train import automatic_precision, fit, seed_everything

MODELS = ("classic_unet", "improved_unet", "attention_unet", "compact_unet")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Speed of the U-Nets, in slices per second.")
    known = sorted(SEGMENTER_RECIPES)
    parser.add_argument(
        "--models", nargs="+", default=MODELS, choices=known, metavar="NAME", help="default: %(default)s"
    )
    parser.add_argument("--slices", type=int, default=96, metavar="N", help="slices to train on (default: 96)")
    parser.add_argument("--seconds", type=float, default=15.0, metavar="S", help="time for each number (default: 15)")
    options = parser.parse_args(arguments)
    if options.slices < 1 or options.seconds <= 0:
        parser.error("--slices and --seconds must be positive")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as spare:
        slices = load_brats(data_folder(Path(spare)), progress=True, damaged="skip").slices()
        chosen = np.sort(np.random.default_rng(0).permutation(len(slices))[: options.slices])
        slices = slices.subset(chosen)
        files = write_slices(slices, Path(spare) / "hdf5", len(slices), None)
        print(f"hardware: {hardware()}; torch {torch.__version__}, {torch.get_num_threads()} threads")
        print(f"data: {slices!r} of 240 × 240 pixels", flush=True)
        print(
            f"(a) brainlib: the store, {automatic_precision()}, channels last; (b) plain: one HDF5 file a slice, "
            "float32, contiguous",
            flush=True,
        )
        for name in options.models:
            recipe = get_segmenter_recipe(name)
            data = recipe.make_data(slices)
            a = fit_speed(recipe, data, options.seconds)
            b = plain_speed(recipe, files, options.seconds, device, training=True)
            loader = loader_speed(recipe, data, options.seconds, device)
            print(
                f"{name}: training   (a) {a:.1f} slices/s, (b) {b:.1f}; (a) is {a / b:.1f} times as fast; "
                f"loader alone {loader:.0f} slices/s, {loader / a:.0f} times (a)",
                flush=True,
            )
            a = outline_speed(recipe, data, options.seconds)
            b = plain_speed(recipe, files, options.seconds, device, training=False)
            print(f"{name}: inference  (a) {a:.1f} slices/s, (b) {b:.1f}; (a) is {a / b:.1f} times as fast", flush=True)


def fit_speed(recipe: SegmenterRecipe, data: SegmentationData, seconds: float) -> float:
    """Slices per second of `brainlib.train.fit`; the first epoch, of one batch, warms up and does not count."""
    seed_everything(0)
    model = recipe.make_model()
    optimizer = recipe.make_optimizer(model)
    settings = {"loss": recipe.make_loss(), "batch_size": recipe.batch_size, "score": slice_dice, "progress": False}
    settings |= {"augment": recipe.augment, "optimizer": optimizer}
    few = data.subset(np.arange(min(recipe.batch_size, len(data))))
    rate = len(few) / fit(model, few, epochs=2, **settings).seconds[1]
    batches = max(1, round(min(len(data), seconds * rate) / recipe.batch_size))
    part = data.subset(np.arange(min(len(data), batches * recipe.batch_size)))
    epochs = max(1, round(seconds * rate / len(part)))
    return epochs * len(part) / sum(fit(model, part, epochs=epochs, **settings).seconds)


def outline_speed(recipe: SegmenterRecipe, data: SegmentationData, seconds: float) -> float:
    """Slices per second of `brainlib.segmenters.outline` at the precision that `fit` chooses."""
    seed_everything(0)
    model = recipe.make_model()
    return measure(
        lambda index: outline(model, data.subset(index.numpy()), batch_size=32, precision=automatic_precision()),
        len(data),
        32,
        seconds,
    )


def loader_speed(recipe: SegmenterRecipe, data: SegmentationData, seconds: float, device: torch.device) -> float:
    """Everything that `fit` does to a batch before the model sees it, but for augmentation."""

    def step(index: torch.Tensor) -> None:
        images, labels = (part.to(device) for part in data.batch(index))
        images, _ = data.prepare(images, labels, index)
        images.contiguous(memory_format=torch.channels_last)

    return measure(step, len(data), recipe.batch_size, seconds)


def plain_speed(
    recipe: SegmenterRecipe, files: Sequence[Path], seconds: float, device: torch.device, training: bool
) -> float:
    """What is often written: each slice read from its own file, scaled by itself, float32, default memory layout.

    Whole slices, no augmentation; a model that wants neighbors gets the slice repeated.
    """
    seed_everything(0)
    model, loss = recipe.make_model().to(device).train(training), recipe.make_loss()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)

    def load(index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images, masks = [], []
        for i in index:
            image, mask = read_slice(files[i])
            low, high = image.min((0, 1)), image.max((0, 1))
            scaled = ((image - low) / np.where(high > low, high - low, 1)).astype(np.float32)
            images.append(torch.from_numpy(scaled.transpose(2, 0, 1)).repeat(2 * recipe.neighbors + 1, 1, 1))
            masks.append(torch.from_numpy(mask.transpose(2, 0, 1)).float())
        return torch.stack(images).to(device), torch.stack(masks).to(device)

    def train(index: torch.Tensor) -> None:
        images, masks = load(index)
        optimizer.zero_grad()
        loss(model(images), masks).backward()
        optimizer.step()

    def infer(index: torch.Tensor) -> None:
        with torch.no_grad():
            model(load(index)[0]).sigmoid().cpu()

    batch = recipe.batch_size if training else 32
    return measure(train if training else infer, len(files), batch, seconds)


def measure(step: Callable[[torch.Tensor], object], count: int, batch: int, seconds: float) -> float:
    """Slices per second of ``step``, called with shuffled batches of positions, after one call that warms up."""
    cuda = torch.cuda.is_available()
    step(torch.arange(min(batch, count)))
    slices, start = 0, time.perf_counter()
    while True:
        for index in torch.randperm(count).split(batch):
            step(index)
            if cuda:
                torch.cuda.synchronize()
            slices += len(index)
            if (elapsed := time.perf_counter() - start) >= seconds:
                return slices / elapsed


if __name__ == "__main__":
    main()
