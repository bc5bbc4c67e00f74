"""Outlines of tumors: those that were published with the figshare set, brought to the slices that came from it.

The Brain Tumor MRI Dataset says which tumor a slice shows and not where. Nearly all of its tumor slices come from the
set of J. Cheng (2015, doi 10.6084/m9.figshare.1512427), whose 3,064 pictures carry an outline drawn by radiologists.
The match table knows which picture a slice is; what remains is geometry.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from brainlib.data.mri import MRIDataset, read_match_table
from brainlib.files import DataError, data_root

SOURCE_SIZE = 512  # pixels: outlines are drawn on pictures of 512 by 512


def read_outlines(source: str | os.PathLike[str] | None = None) -> dict[int, np.ndarray]:
    """Read the outlines of the figshare set: number of the picture (from 1) to ``(n, 2)`` of (x, y) in its pixels.

    Args:
        source: a folder with the set's files ``1.mat``, ``2.mat``, ... in it or below it, or a table ``borders.csv``
            with the columns ``file`` and ``tumorBorder`` (a list of points). Default: ``figshare`` under
            `brainlib.files.data_root`.

    Raises:
        DataError: nothing there, or an outline that cannot be read.
    """
    source = Path(source) if source is not None else data_root() / "figshare"
    table = source / "borders.csv" if source.is_dir() else source
    if table.is_file():
        return _read_table(table)
    files = sorted(source.rglob("[0-9]*.mat"), key=lambda path: int(path.stem)) if source.is_dir() else []
    if not files:
        raise DataError(
            f"{source}: no outlines there. Download doi 10.6084/m9.figshare.1512427 and unpack its .mat files into it."
        )
    return {int(path.stem): _read_mat(path) for path in files}


def tumor_outlines(dataset: MRIDataset, outlines: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Bring outlines to the slices that they belong to: position in ``dataset`` to ``(n, 2)`` of (x, y).

    The way of a point: mirrored if the slice is, scaled from 512 pixels to the size of the file, moved by the margins
    that were cropped, scaled to the size of ``dataset.images``. Whole numbers are centers of pixels.

    Args:
        dataset: from `brainlib.data.load_mri`; slices without a match are left out.
        outlines: see `read_outlines`.
    """
    match = read_match_table()
    side = dataset.images.shape[1]
    found = {}
    for position, path in enumerate(dataset.paths):
        origin = match.get(path)
        if origin is None or not origin.picture.startswith("figshare-"):
            continue
        points = outlines.get(int(origin.picture.removeprefix("figshare-")))
        if points is None:
            continue
        points = points + 0.5  # from centers to corners, where scaling is a product
        if origin.mirrored:  # left and right exchanged: figshare pictures occur in no other position
            points = points * [-1, 1] + [SOURCE_SIZE, 0]
        height, width = dataset.sizes[position]
        top, bottom, left, right = dataset.facts["margins"][position]
        points = points * [width / SOURCE_SIZE, height / SOURCE_SIZE] - [left, top]
        found[position] = points * [side / (width - left - right), side / (height - top - bottom)] - 0.5
    return found


def outline_mask(points: np.ndarray, size: int) -> np.ndarray:
    """The inside of an outline, bool ``(size, size)``."""
    canvas = Image.new("1", (size, size))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points], fill=1)
    return np.asarray(canvas)


def _read_table(path: Path) -> dict[int, np.ndarray]:
    csv.field_size_limit(10_000_000)
    found = {}
    with path.open(newline="", encoding="utf-8") as lines:
        for number, row in enumerate(csv.DictReader(lines), 2):
            try:
                if row["tumorBorder"]:
                    found[int(Path(row["file"]).stem)] = np.array(json.loads(row["tumorBorder"]), float).reshape(-1, 2)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{path}, line {number}: no outline there ({error})") from error
    return found


def _read_mat(path: Path) -> np.ndarray:
    import h5py  # here, since few readers of this module have the .mat files

    try:
        with h5py.File(path) as file:
            return np.asarray(file["cjdata/tumorBorder"], float).reshape(-1, 2)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} holds no outline ({error}): download it again") from error
