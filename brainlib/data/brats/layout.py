"""Which files belong to which patient, at any nesting that people have."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from brainlib.files import DataError, data_root

from .tables import read_rows

#: The four contrasts, in the order of the channels everywhere in brainlib.
MODALITIES = ("FLAIR", "T1", "T1c", "T2")
#: What the official files call them, and the mask.
SUFFIXES = ("flair", "t1", "t1ce", "t2", "seg")
DEPTH = 6  # how many folders deep the data are looked for
_NIFTI = re.compile(r"(?P<id>.+)_(?P<kind>flair|t1|t1ce|t2|seg)\.nii(?:\.gz)?", re.IGNORECASE)
_HDF5 = re.compile(r"volume_(\d+)_slice_(\d+)\.h5", re.IGNORECASE)


@dataclass
class Source:
    """The files of one patient.

    Attributes:
        kind: ``"nifti"`` (files are keyed by `SUFFIXES`) or ``"hdf5"`` (keyed by z).
        damage: why the patient cannot be read, as far as the names tell; None if nothing is missing.
    """

    id: str
    kind: str
    files: dict[str | int, str] = field(default_factory=dict)
    damage: str | None = None
    notes: list[str] = field(default_factory=list)

    def key(self) -> str:
        """Twelve hex digits that change when a file is added, removed, or written again."""
        digest = hashlib.sha256()
        for name, path in self.files.items():
            try:
                status = os.stat(path)
                digest.update(f"{name}\0{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
            except OSError as error:  # a link that leads nowhere
                self.damage = self.damage or f"{os.path.basename(path)}: {error.strerror}"
        return digest.hexdigest()[:12]


def _walk(folder: Path, depth: int = DEPTH) -> Iterator[tuple[Path, list[str]]]:
    """Folders with the names of their files, sorted. Hidden ones and those of the validation set are left out."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error
    entries = [entry for entry in entries if not entry.name.startswith(".")]
    folders = [entry for entry in entries if entry.is_dir()]
    yield folder, [entry.name for entry in entries if entry not in folders] if folders else [e.name for e in entries]
    for entry in folders if depth else ():
        # The official validation set has no masks; the Kaggle download puts it beside the training set.
        if "validation" not in entry.name.lower():
            yield from _walk(folder / entry.name, depth - 1)


def find_brats(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder at or below ``root`` that holds the patients' folders (NIfTI) or the slices (HDF5).

    Args:
        root: default ``brats2020`` under `brainlib.files.data_root`. Found below it, for example:
            ``BraTS2020_TrainingData/MICCAI_BraTS2020_TrainingData`` and ``BraTS2020_training_data/content/data``.

    Raises:
        DataError: no such folder, nothing found in it, or more than one set.
    """
    root = Path(data_root() / "brats2020" if root is None else root).expanduser()
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder. Download BraTS 2020 (Kaggle: awsaf49/brats2020-training-data, or the official "
            "NIfTI files), unpack it there, or set BRAINLIB_DATA to the folder above it."
        )
    nifti, hdf5 = [], []
    for folder, names in _walk(root):
        if any(_HDF5.fullmatch(name) for name in names):
            hdf5.append(folder)
        if any(_NIFTI.fullmatch(name) for name in names):
            nifti.append(folder)
    found = [*hdf5, *([Path(os.path.commonpath(nifti))] if nifti else [])]
    if len(found) > 1:
        raise DataError(f"{root} holds more than one set; name one of these:\n" + "\n".join(f"  {f}" for f in found))
    if not found:
        raise DataError(
            f"{root}: neither NIfTI files (BraTS20_Training_001_flair.nii, ...) nor HDF5 slices "
            "(volume_1_slice_0.h5, ...) in this folder or below it."
        )
    return found[0].resolve()


def list_sources(folder: Path) -> list[Source]:
    """All patients under a folder that `find_brats` gave, by id. What the file names already tell is in ``damage``."""
    nifti: dict[str, Source] = {}
    hdf5: dict[int, dict[int, str]] = defaultdict(dict)
    for place, names in _walk(folder):
        strangers, here = [], set()
        for name in sorted(names, key=lambda name: (name.lower().endswith(".gz"), name)):  # .nii before .nii.gz
            path = str(place / name)
            if match := _HDF5.fullmatch(name):
                hdf5[int(match[1])][int(match[2])] = path
            elif match := _NIFTI.fullmatch(name):
                source = nifti.setdefault(match["id"], Source(match["id"], "nifti"))
                here.add(match["id"])
                known = source.files.setdefault(match["kind"].lower(), path)
                if os.path.dirname(known) != str(place):
                    source.damage = f"two copies, in {os.path.dirname(known)} and {place}: remove one"
            elif name.lower().endswith((".nii", ".nii.gz")) and "seg" in name.lower():
                strangers.append(path)
        # Patient 355 of BraTS 2020 was published with a mask named W39_1998.09.19_Segm.nii.
        if len(here) == 1 and len(strangers) == 1 and "seg" not in (source := nifti[here.pop()]).files:
            source.files["seg"] = strangers[0]
            source.notes.append(f"mask read from {os.path.basename(strangers[0])}")
    for source in nifti.values():
        if missing := [kind for kind in SUFFIXES if kind not in source.files]:
            source.damage = source.damage or f"missing: {', '.join(missing)}"
        source.files = {kind: source.files[kind] for kind in SUFFIXES if kind in source.files}
    sources = [*nifti.values(), *_hdf5_sources(folder, hdf5)]
    return sorted(sources, key=lambda source: source.id)


def _hdf5_sources(folder: Path, volumes: dict[int, dict[int, str]]) -> list[Source]:
    """One source per volume. A volume must have every slice that another one has, and those that meta_data.csv lists.

    ``meta_data.csv`` counts only between the lowest and the highest slice on disk, so that a copy of the middle slices
    alone is a set as good as any.
    """
    if not volumes:
        return []
    expected = {z for files in volumes.values() for z in files}
    listed: dict[int, set[int]] = defaultdict(set)
    for row in read_rows(folder / "meta_data.csv"):
        volume, z = row.get("volume", ""), row.get("slice", "")
        if volume.isdigit() and z.isdigit() and min(expected) <= int(z) <= max(expected):
            listed[int(volume)].add(int(z))
    sources = []
    for number, files in volumes.items():
        source = Source(f"BraTS20_Training_{number:03d}", "hdf5", dict(sorted(files.items())))
        if missing := sorted((expected | listed[number]) - set(files)):
            source.damage = f"missing slices: {ranges(missing)}"
        sources.append(source)
    return sources


def ranges(numbers: list[int]) -> str:
    """Sorted numbers as text: 3-7, 9."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
