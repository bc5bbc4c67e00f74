"""Where the tumor is in each slice of the phantom.

The slices are written as JPEG files, as the real ones are, and their masks are not. But a phantom is made from a seed:
whoever makes a patient again gets the same head, the same tumor and the same cut. So the masks are made again, and
their areas are compared with the table that was written beside the slices.
"""

from __future__ import annotations

import csv
import json
import os
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from brainlib.data.mri import CROPPED, MRIDataset
from brainlib.data.phantom.anatomy import Head
from brainlib.data.phantom.cohort import Patient, draw_positions, draw_tumor, patients, sites
from brainlib.data.phantom.imaging import Scan
from brainlib.data.phantom.settings import PhantomSettings
from brainlib.data.phantom.write import MRI, phantom_hash
from brainlib.files import DataError, atomic_path, data_root


def phantom_masks(data: MRIDataset, root: str | os.PathLike[str] | None = None) -> np.ndarray:
    """The tumors in slices of the phantom, bool ``(N, H, W)``: without edema, cropped and resized as the slices are.

    Slices without a tumor have an empty mask. A patient takes a second or so (a glioma several, since it has to grow),
    once: masks are kept under ``cache`` of `brainlib.files.data_root`.

    Args:
        data: slices of `brainlib.data.load_mri` from the phantom at ``root``.
        root: its folder, as `brainlib.data.make_phantom` returns it.

    Raises:
        DataError: no phantom there, one that another version of the course made, or slices that are not from it.
    """
    root = Path(root) if root is not None else data_root() / "phantom"
    key, seed, settings = _read_mark(root)
    with (root / MRI / "slices.csv").open(newline="", encoding="utf-8") as lines:
        areas = {row["path"]: int(row["tumor_px"]) for row in csv.DictReader(lines)}
    unknown = [path for path in data.paths if path not in areas]
    if unknown:
        raise DataError(f"{unknown[0]} is no slice of the phantom at {root}: load the slices from there")
    of_path = {path: patient for patient in patients(settings, seed) for path in patient.files}
    wanted = defaultdict(list)  # patient to positions in `data`
    for position, path in enumerate(data.paths):
        if areas[path]:
            wanted[of_path[path]].append(position)
    side = data.images.shape[1]
    masks = np.zeros((len(data), side, side), bool)
    for patient, positions in wanted.items():
        store = data_root() / "cache" / f"phantom-masks-{key[:16]}" / f"{patient.id}.npz"
        covers = _covers(patient, settings, seed, areas, store)
        for position in positions:
            masks[position] = _to_slice(covers[data.paths[position]], data.facts["margins"][position], side)
    return masks


def _read_mark(root: Path) -> tuple[str, int, PhantomSettings]:
    try:
        mark = json.loads((root / "phantom.json").read_text(encoding="utf-8"))
        stored = {name: tuple(v) if isinstance(v, list) else v for name, v in mark["settings"].items()}
        settings = PhantomSettings(**stored)
        key, seed = mark["hash"], int(mark["seed"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{root} is not the folder of a phantom: give the one that make_phantom() returns") from error
    if key != phantom_hash(seed, settings):
        raise DataError(f"{root} was made by another version of the course: call make_phantom() to make it anew")
    return key, seed, settings


def _covers(
    patient: Patient, settings: PhantomSettings, seed: int, areas: dict[str, int], store: Path
) -> dict[str, np.ndarray]:
    """How much of each pixel of a patient's files is tumor, uint8 in 1/255, by path; from the cache if it is there."""
    try:
        with np.load(store) as file:
            return dict(zip(patient.files, file["covers"], strict=True))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        pass
    covers = dict(zip(patient.files, _cut(patient, settings, seed), strict=True))
    for path, cover in covers.items():
        if int((cover > 0.5).sum()) != areas[path]:
            raise DataError(
                f"{path} was made on another machine, with other rounding: make the phantom anew on this one"
            )
    stored = {path: np.rint(255 * cover).astype(np.uint8) for path, cover in covers.items()}
    with atomic_path(store) as temporary:
        np.savez_compressed(temporary, covers=np.stack(list(stored.values())))
    return stored


def _cut(patient: Patient, settings: PhantomSettings, seed: int) -> list[np.ndarray]:
    """Tumor in the slices of a patient, float32 in [0, 1]: the steps of `examine`, in its order."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 2, patient.number]))
    head = Head(rng)
    tumor = draw_tumor(patient.label, head, rng)
    positions = draw_positions(tumor, head, settings.slices_per_patient, rng)
    scan = Scan(head, tumor, sites(settings, seed)[patient.site], rng)
    size = int(rng.integers(settings.size_px[0], settings.size_px[1] + 1))
    field = rng.uniform(*settings.field_mm)
    covers = []
    for plane, position in positions:
        covers.append(scan.slice(plane, position, size, field, rng.uniform(-6, 6, 2), rng)[1])
        rng.uniform(0.75, 1.1)  # brightness
        rng.integers(82, 96)  # quality
    return covers


def _to_slice(cover: np.ndarray, margins: np.ndarray, side: int) -> np.ndarray:
    """The way of a slice from its file to the array: cropped, resized to 256 pixels, then to ``side``."""
    top, bottom, left, right = margins
    head = Image.fromarray(cover[top : cover.shape[0] - bottom, left : cover.shape[1] - right])
    head = head.resize((CROPPED, CROPPED), Image.Resampling.BILINEAR)
    return np.asarray(head.resize((side, side), Image.Resampling.BILINEAR)) > 127
