"""Training speed of CustomCNN: brainlib's loop, its loader alone, and a plain per-image pipeline, in one run.

    python benchmarks/custom_cnn.py [--images N] [--seconds S]

README.md beside this file says how to read the numbers.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from brainlib.data import CLASSES, Augment, MRIDataset, crop_margins, data_root, load_mri, to_input
from brainlib.data.augment import repeat_channels
from brainlib.data.mri import SPLITS, find_root
from brainlib.recipes import Recipe, get_recipe
from brainlib.results import hardware
from brainlib.train import automatic_precision, fit, seed_everything

SIZE = 128
BATCH = 64


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Training speed of CustomCNN, in images per second.")
    parser.add_argument("--images", type=int, default=1024, metavar="N", help="slices to train on (default: 1024)")
    parser.add_argument("--seconds", type=float, default=15.0, metavar="S", help="time for each number (default: 15)")
    options = parser.parse_args(arguments)
    if options.images < 1 or options.seconds <= 0:
        parser.error("--images and --seconds must be positive")
    with tempfile.TemporaryDirectory() as spare:
        data, root, device = prepare(Path(spare), options.images)
        recipe = get_recipe("custom_cnn")
        model = fit_speed(data, options.seconds, recipe)
        print(f"(a) fit, {automatic_precision()}, channels last: {model:.0f} images/s", flush=True)
        loader = loader_speed(data, options.seconds, device)
        print(f"(b) loader alone: {loader:.0f} images/s, {loader / model:.1f} times (a)", flush=True)
        plain = plain_speed(data, root, options.seconds, device, recipe)
        print(f"(c) plain per-image pipeline, float32: {plain:.0f} images/s; (a) is {model / plain:.1f} times as fast")


def prepare(spare: Path, images: int) -> tuple[MRIDataset, Path, str]:
    """Slices to train on, the folder of their files, and the device; says what they are."""
    root = find_root(data_folder(spare, images))
    data = load_mri(root, size=SIZE, split="Training", progress=True)
    chosen = np.random.default_rng(0).permutation(len(data))[:images]
    data = data.subset(np.sort(chosen))
    print(f"hardware: {hardware()}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"data: {data.name}, {len(data)} slices of {SIZE} pixels, batches of {BATCH}", flush=True)
    return data, root, "cuda" if torch.cuda.is_available() else "cpu"


def data_folder(spare: Path, images: int) -> Path:
    """The real set if it is there, else the phantom, else noise made in ``spare``, which then holds the cache too."""
    for folder in (data_root() / "brain-tumor-mri", data_root() / "phantom" / "brain-tumor-mri"):
        if folder.is_dir():
            return folder
    os.environ["BRAINLIB_DATA"] = str(spare)
    rng = np.random.default_rng(0)
    for split in SPLITS:
        for name in CLASSES:
            folder = spare / "noise" / split / name
            folder.mkdir(parents=True)
            for i in range(-(-images // len(CLASSES)) if split == "Training" else 1):
                coarse = Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8))
                coarse.resize((224, 224), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
    return spare / "noise"


def fit_speed(data: MRIDataset, seconds: float, recipe: Recipe) -> float:
    """Images per second of `brainlib.train.fit`; the first epoch warms up and does not count."""

    def run(part: MRIDataset, epochs: int) -> float:
        seed_everything(0)
        model = recipe.make_model()
        optimizer = recipe.make_optimizer(model)
        more = {"loss": recipe.make_loss(), "augment": recipe.augment, "progress": False}
        history = fit(model, part, optimizer=optimizer, epochs=1 + epochs, batch_size=BATCH, **more)
        return epochs * len(part) / sum(history.seconds[1:])

    estimate = run(data.subset(np.arange(min(BATCH, len(data)))), 1)  # one batch: a slow model must not take minutes
    part = data.subset(np.arange(enough(len(data), seconds * estimate)))
    return run(part, max(1, round(seconds * estimate / len(part))))


def enough(available: int, wanted: float) -> int:
    """Whole batches for about ``wanted`` images; one at least, and all there are at most."""
    return min(available, BATCH * max(1, round(wanted / BATCH)))


def measure(step: Callable[[torch.Tensor], None], count: int, seconds: float, device: str) -> float:
    """Images per second of ``step``, called with shuffled batches of positions, after two calls that warm up."""

    warm_up, images, start = 2, 0, 0.0
    while True:
        for index in torch.randperm(count).split(BATCH):
            step(index)
            if device == "cuda":
                torch.cuda.synchronize()
            if warm_up:
                warm_up -= 1
                start = time.perf_counter()
                continue
            images += len(index)
            if (elapsed := time.perf_counter() - start) >= seconds:
                return images / elapsed


def loader_speed(data: MRIDataset, seconds: float, device: str) -> float:
    """Everything that `fit` does to a batch before the model sees it."""
    augment, generator = Augment(), torch.Generator().manual_seed(0)

    def step(index: torch.Tensor) -> None:
        images, labels = (part.to(device) for part in data.batch(index))
        repeat_channels(augment(to_input(images), generator), 3).contiguous(memory_format=torch.channels_last)

    return measure(step, len(data), seconds, device)


def plain_speed(data: MRIDataset, root: Path, seconds: float, device: str, recipe: Recipe) -> float:
    """What is often written: each image opened, cropped, resized and augmented by itself, each time it is needed."""
    seed_everything(0)
    random.seed(0)
    model, loss = recipe.make_model().to(device).train(), recipe.make_loss()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)

    def step(index: torch.Tensor) -> None:
        images, labels = (part.to(device) for part in load_plain(data, root, index, recipe.augment))
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()

    return measure(step, len(data), seconds, device)


def load_plain(
    data: MRIDataset, root: Path, index: torch.Tensor, augment: Augment | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch with Pillow, image by image: float32 ``(B, 3, SIZE, SIZE)`` and labels.

    Of the augmentation, flip, rotation, brightness and contrast; zoom, shift and holes are left out.
    """

    def load(position: int) -> torch.Tensor:
        with Image.open(root / data.paths[position]) as picture:
            image = Image.fromarray(crop_margins(np.asarray(picture.convert("L"))))
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        if augment is not None:
            image = ImageOps.mirror(image) if random.random() < augment.flip else image
            image = image.rotate(random.uniform(-augment.rotation, augment.rotation), Image.Resampling.BILINEAR)
            image = ImageEnhance.Brightness(image).enhance(1 + random.uniform(-1, 1) * augment.brightness)
            image = ImageEnhance.Contrast(image).enhance(1 + random.uniform(-1, 1) * augment.contrast)
        return torch.from_numpy(np.asarray(image.convert("RGB")) / np.float32(255)).permute(2, 0, 1)

    images = torch.stack([load(int(i)) for i in index]).contiguous()
    return images, torch.from_numpy(data.labels[index.numpy()])


if __name__ == "__main__":
    main()
