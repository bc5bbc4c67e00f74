"""Reading speed of the BraTS store against one float64 HDF5 file per slice, in one run on one core.

    python benchmarks/brats_store.py [--slices N] [--seconds S] [--repeats R]

README.md beside this file says how to read the numbers.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch

from brainlib.data import data_root
from brainlib.data.brats import BraTSSlices, load_brats
from brainlib.results import hardware

BATCH = 32


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Reading speed of the BraTS store, in slices per second of one core.")
    parser.add_argument("--slices", type=int, default=128, metavar="N", help="slices written as HDF5 (default: 128)")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="time of one measurement (default: 1)")
    parser.add_argument(
        "--repeats", type=int, default=5, metavar="R", help="measurements; the best counts (default: 5)"
    )
    options = parser.parse_args(arguments)
    if options.slices < 1 or options.seconds <= 0 or options.repeats < 1:
        parser.error("--slices, --seconds and --repeats must be positive")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as spare:
        data = load_brats(data_folder(Path(spare)), progress=True, damaged="skip").slices()
        print(f"hardware: {hardware()}; torch {torch.__version__}, one thread")
        print(f"data: {data!r}, batches of {BATCH} at random", flush=True)
        for start in range(0, len(data), BATCH):  # every page into memory: what is measured is warm
            data.batch(np.arange(start, min(start + BATCH, len(data))))

        def speed(step: Callable[[np.ndarray], object], count: int) -> float:
            return best(step, count, options.seconds, options.repeats)

        out = (
            torch.empty(BATCH, *data.shape, dtype=torch.uint8),
            torch.empty(BATCH, *data.shape[1:], dtype=torch.uint8),
        )
        reused = speed(lambda index: data.batch(index, out=out), len(data))
        print(f"(a) store, into reused memory: {reused:.0f} slices/s", flush=True)
        fresh = speed(data.batch, len(data))
        print(f"(b) store, new memory for each batch: {fresh:.0f} slices/s", flush=True)
        for letter, text, compression in (("c", "uncompressed", None), ("d", "gzip", "gzip")):
            files = write_slices(data, Path(spare) / text, options.slices, compression)
            plain = speed(lambda index, files=files: [read_slice(files[i]) for i in index], len(files))
            print(
                f"({letter}) one HDF5 file per slice, {text}: {plain:.0f} slices/s; "
                f"(a) is {reused / plain:.0f} times as fast, (b) {fresh / plain:.0f} times",
                flush=True,
            )


def data_folder(spare: Path) -> Path:
    """The real set if it is there, else the phantom, else a few volumes of noise made in ``spare``."""
    for folder in (data_root() / "brats2020", data_root() / "phantom" / "brats2020"):
        if folder.is_dir():
            return folder
    os.environ["BRAINLIB_DATA"] = str(spare)
    folder = spare / "noise"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for z in range(60, 68):
        image = np.zeros((240, 240, 4))
        image[60:180, 40:200] = rng.uniform(1, 100, (120, 160, 4))
        mask = np.zeros((240, 240, 3), np.uint8)
        mask[80:100, 80:100, 1] = 1
        _write(folder / f"volume_1_slice_{z}.h5", image - 1, mask, None)
    return folder


def write_slices(data: BraTSSlices, folder: Path, count: int, compression: str | None) -> list[Path]:
    """Some slices in the layout of the Kaggle set: standardized float64 ``(H, W, 4)``, uint8 masks ``(H, W, 3)``."""
    folder.mkdir()
    files = []
    for i in np.sort(np.random.default_rng(0).permutation(len(data))[:count]):
        (image,), (label,) = (part.numpy() for part in data.batch([i]))
        mean, std = (part.numpy()[0] for part in data.statistics([i]))
        image = (image.transpose(1, 2, 0) - mean.astype(float)) / std
        files.append(folder / f"{len(files)}.h5")
        _write(files[-1], image, np.stack([label == value for value in (1, 2, 4)], -1).astype(np.uint8), compression)
    return files


def _write(path: Path, image: np.ndarray, mask: np.ndarray, compression: str | None) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("image", data=image, compression=compression)
        file.create_dataset("mask", data=mask, compression=compression)


def read_slice(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The study's way: open the file of a slice, read image and mask."""
    with h5py.File(path, "r") as file:
        return file["image"][()], file["mask"][()]


def best(step: Callable[[np.ndarray], object], count: int, seconds: float, repeats: int) -> float:
    """Slices per second of ``step``, called with batches of random positions: the best of several measurements.

    Seconds are those that this process computes, in one thread and without waiting for a disk: the speed of one whole
    core, whatever else the machine does at the time.
    """
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(repeats):
        slices, start = 0, time.process_time()
        while (elapsed := time.process_time() - start) < seconds:
            step(rng.integers(0, count, BATCH))
            slices += BATCH
        rates.append(slices / elapsed)
    return max(rates)


if __name__ == "__main__":
    main()
