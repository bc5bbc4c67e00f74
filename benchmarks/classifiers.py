"""Speed of the classifiers, training and inference: brainlib's loop beside a plain one, in one run.

    python benchmarks/classifiers.py [--models NAME...] [--images N] [--seconds S]

README.md beside this file says how to read the numbers.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from custom_cnn import BATCH, enough, fit_speed, load_plain, measure, plain_speed, prepare  # beside this file

from brainlib.data import MRIDataset
from brainlib.evaluate import predict
from brainlib.recipes import RECIPES, get_recipe
from brainlib.train import automatic_precision, seed_everything

MODELS = ("alexnet", "vgg16", "vit", "compact_transformer")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Speed of the classifiers, in images per second.")
    parser.add_argument(
        "--models", nargs="+", default=MODELS, choices=sorted(RECIPES), metavar="NAME", help="default: %(default)s"
    )
    parser.add_argument("--images", type=int, default=1024, metavar="N", help="slices to use (default: 1024)")
    parser.add_argument("--seconds", type=float, default=15.0, metavar="S", help="time for each number (default: 15)")
    options = parser.parse_args(arguments)
    if options.images < 1 or options.seconds <= 0:
        parser.error("--images and --seconds must be positive")
    with tempfile.TemporaryDirectory() as spare:
        data, root, device = prepare(Path(spare), options.images)
        print(f"(a) brainlib, {automatic_precision()}, channels last; (b) plain, float32, images by Pillow", flush=True)
        for name in options.models:
            recipe = get_recipe(name)
            a = fit_speed(data, options.seconds, recipe)
            b = plain_speed(data, root, options.seconds, device, recipe)
            print(f"{name}: training   (a) {a:.1f} images/s, (b) {b:.1f}; (a) is {a / b:.1f} times as fast", flush=True)
            a = predict_speed(data, options.seconds, name)
            b = plain_predict_speed(data, root, options.seconds, device, name)
            print(f"{name}: inference  (a) {a:.1f} images/s, (b) {b:.1f}; (a) is {a / b:.1f} times as fast", flush=True)


def predict_speed(data: MRIDataset, seconds: float, name: str) -> float:
    """Images per second of `brainlib.evaluate.predict` at the precision that `fit` chooses; one batch warms up."""
    seed_everything(0)
    model = get_recipe(name).make_model()

    def run(images: int) -> float:
        part = data.subset(np.arange(images))
        start = time.perf_counter()
        predict(model, part, precision=automatic_precision())  # waits for the device: its result is on the CPU
        return images / (time.perf_counter() - start)

    batch = min(BATCH, len(data))
    run(batch)
    images = enough(len(data), seconds * run(batch))
    rates, start = [], time.perf_counter()
    while not rates or time.perf_counter() - start < seconds:
        rates.append(run(images))
    return len(rates) / sum(1 / rate for rate in rates)


def plain_predict_speed(data: MRIDataset, root: Path, seconds: float, device: str, name: str) -> float:
    """The same in float32, each image opened, cropped and resized by itself."""
    seed_everything(0)
    model = get_recipe(name).make_model().to(device).eval()

    def step(index: torch.Tensor) -> None:
        with torch.no_grad():
            model(load_plain(data, root, index, None)[0].to(device)).softmax(1).cpu()

    return measure(step, len(data), seconds, device)


if __name__ == "__main__":
    main()
