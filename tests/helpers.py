"""What several test modules share: small data sets in memory, a small network, and disks that are full or read-only."""

import contextlib
import hashlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from brainlib.data import CLASSES, MRIDataset


def random_slices(count: int, size: int = 32, seed: int = 0, first_group: int = 0) -> MRIDataset:
    """Noise pictures, each its own group, with the four labels in turn."""
    images = np.random.default_rng(seed).integers(0, 256, (count, size, size), np.uint8)
    return MRIDataset(
        name="noise",
        images=images,
        labels=np.arange(count) % len(CLASSES),
        groups=first_group + np.arange(count),
        paths=np.array([f"Training/{CLASSES[i % 4]}/{seed}-{i}.png" for i in range(count)], dtype=object),
        hashes=np.array([hashlib.sha256(image).hexdigest() for image in images], dtype=object),
        sizes=np.full((count, 2), size),
        splits=np.full(count, "Training"),
    )


def striped_slices(count: int, size: int = 32, seed: int = 0, first_group: int = 0) -> MRIDataset:
    """Noise with a bright band whose place tells the class: quick to learn, and not perfectly."""
    data = random_slices(count, size, seed, first_group)
    step = size // 4
    for image, label in zip(data.images, data.labels, strict=True):
        image[label * step : (label + 1) * step] //= 2
        image[label * step : (label + 1) * step] += 90
    return data


def tiny_network(dropout: float = 0.25) -> nn.Module:
    """A network of 3,184 weights for 32-pixel images, with everything that has a state: BatchNorm and dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=4),
        nn.BatchNorm2d(16),
        nn.Mish(),
        nn.AdaptiveAvgPool2d((7, 1)),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(112, 16),
        nn.ReLU(),
        nn.Linear(16, 4),
    )


def hear_ctrl_c() -> None:
    """For ``preexec_fn`` of a process that gets a Ctrl-C: a shell starts what it runs in the background deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A disk in memory at ``folder``; the test is skipped where the system does not let it be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("this system has no mount command")
    if answer.returncode:
        pytest.skip("this user may not mount a disk in memory")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` with its content: what a failure must leave as it was."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
