"""A set of patients: whole volumes, and batches of slices."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brainlib.files import DataError

from .layout import MODALITIES, find_brats, list_sources
from .physics import Physics
from .read import SHAPE
from .store import Options, fill, store_folder
from .tables import Patient, read_patients
from .transform import LABELS


@dataclass(frozen=True)
class Volume:
    """One patient. The arrays are read-only views of the store's memory map: nothing is read before it is used.

    Attributes:
        images: uint8 ``(Z, 4, H, W)``, channels as in `MODALITIES`; background 0, brain 1 to 255.
        labels: uint8 ``(Z, H, W)``: 0, 1 NCR, 2 ED, 4 ET.
        z: int64 ``(Z,)``, position of each slice in the volume, 0 to 154 from below; voxels are cubes of 1 mm.
        scale: float64 ``(4,)``: ``images * scale`` is the brightness in the files, counted from their background.
        mean, std: float64 ``(4,)`` over the nonzero voxels of each channel, in the unit of ``images``.
    """

    id: str
    images: np.ndarray
    labels: np.ndarray
    z: np.ndarray
    scale: np.ndarray
    mean: np.ndarray
    std: np.ndarray


@dataclass
class BraTSDataset:
    """Patients and their volumes. Made by `load_brats`.

    Attributes:
        name: ``"brats2020"``, or ``"phantom"``.
        root: folder of the source files.
        patients: the patients in use, by id.
        skipped: reason by id, for patients left out (``damaged="skip"``).
        notes: what is odd and was not refused: one sentence each.
        store: folder of the converted patients.
    """

    name: str
    root: Path
    patients: tuple[Patient, ...]
    skipped: dict[str, str]
    notes: list[str]
    store: Path
    _files: dict[str, tuple[Path, dict]] = field(repr=False)
    _shape: tuple[int, int, int] = field(default=SHAPE, repr=False)
    _maps: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.patients)

    def __repr__(self) -> str:
        grades = Counter(patient.grade or "grade unknown" for patient in self.patients)
        slices = sum(len(facts["z"]) for _, facts in self._files.values())
        told = ", ".join(f"{grade} {count}" for grade, count in sorted(grades.items()))
        return f"BraTSDataset({self.name}: {len(self)} patients, {slices} slices; {told})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a copy in another process opens the files itself

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(patient.id for patient in self.patients)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change when a patient, a voxel, a label, a position or a scale does."""
        facts = [(id, f["sha256"], f["z"], f["scale"]) for id, (_, f) in sorted(self._files.items())]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def _records(self, id: str) -> np.ndarray:
        """The memory map of a patient: ``(Z, 5, H, W)``, four channels and the labels."""
        if id not in self._maps:
            try:
                mapped = np.load(self._files[id][0], mmap_mode="r")
            except (OSError, ValueError) as error:
                raise DataError(f"{self._files[id][0]} is gone or damaged ({error}): call load_brats again") from error
            self._maps[id] = mapped.view(np.ndarray)
        return self._maps[id]

    def _facts(self, patient: str | Patient) -> tuple[str, dict]:
        id = patient.id if isinstance(patient, Patient) else str(patient)
        if id in self.skipped:
            raise DataError(f"{id} was left out: {self.skipped[id]}")
        if id not in self._files:
            raise DataError(f"no patient {id!r}; there are {len(self)}, from {self.ids[0]} to {self.ids[-1]}")
        return id, self._files[id][1]

    def volume(self, patient: str | Patient) -> Volume:
        """One patient, by id."""
        id, facts = self._facts(patient)
        records = self._records(id)
        numbers = (np.array(facts[name]) for name in ("z", "scale", "mean", "std"))
        return Volume(id, records[:, :4], records[:, 4], *numbers)

    def physics(self, patient: str | Patient) -> Physics:
        """What the channels of a patient were recognized as when it was converted."""
        found = dict(self._facts(patient)[1]["physics"])
        listed = {k: tuple(found[k]) for k in ("order", "fluid", "enhancing") if found[k] is not None}
        return Physics(**{**found, **listed})

    @property
    def channel_order(self) -> str:
        """What the data themselves say about the order of the channels, in one sentence."""
        found = {id: self.physics(id) for id in self.ids}
        sure = [id for id, physics in found.items() if physics.certain and physics.order == MODALITIES]
        text = f"{', '.join(MODALITIES)}: recognized from the voxels in {len(sure)} of {len(self)} patients"
        for word, ids in (
            ("uncertain", [id for id in found if not found[id].certain]),
            ("contradicted", [id for id in found if found[id].certain and id not in sure]),
        ):
            if ids:
                text += f"; {word} in {', '.join(ids[:10])}" + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
        return text

    def slices(self, patients: Iterable[str | Patient] | None = None, z: Iterable[int] = range(39, 116)) -> BraTSSlices:
        """Slices of some patients (default: all), at the positions ``z`` (default: the study's middle slices).

        They are ordered by patient, then from below. Positions that a patient does not have are left out.
        """
        chosen = self.ids if patients is None else list(dict.fromkeys(self._facts(p)[0] for p in patients))
        wanted = set(int(position) for position in z)
        number = {id: n for n, id in enumerate(self.ids)}
        rows = [
            (number[id], row, position, *voxels)
            for id in chosen
            for row, (position, voxels) in enumerate(
                zip(*(self._facts(id)[1][k] for k in ("z", "voxels")), strict=True)
            )
            if position in wanted
        ]
        if not rows:
            raise DataError(f"no slice of {len(chosen)} patients at the positions asked for: choose z from 0 to 154")
        table = np.array(rows, np.int64)
        return BraTSSlices(self, groups=table[:, 0], rows=table[:, 1], z=table[:, 2], voxels=table[:, 3:])

    def table(self) -> list[dict[str, Any]]:
        """One row per patient: the attributes of `Patient`, and the volumes ``NCR_ml``, ``ED_ml`` and ``ET_ml``."""
        rows = []
        for patient in self.patients:
            milliliters = np.sum(self._facts(patient)[1]["voxels"], axis=0) / 1000  # a voxel is a cubic millimeter
            rows.append({**vars(patient), **{f"{n}_ml": float(v) for n, v in zip(LABELS, milliliters, strict=True)}})
        return rows


@dataclass
class BraTSSlices:
    """Axial slices of several patients.

    Attributes:
        groups: int64 ``(N,)``, the patient's position in ``dataset.patients``: the same in every selection from one
            data set, so that splits can be checked.
        z: int64 ``(N,)``, position in the volume.
        voxels: int64 ``(N, 3)``, number of NCR, ED and ET voxels.
        rows: int64 ``(N,)``, position in the patient's file.
    """

    dataset: BraTSDataset
    groups: np.ndarray
    rows: np.ndarray
    z: np.ndarray
    voxels: np.ndarray
    channels: int = field(default=4, repr=False)

    def __len__(self) -> int:
        return len(self.z)

    def __repr__(self) -> str:
        return (
            f"BraTSSlices({self.dataset.name}: {len(self)} slices of {len(np.unique(self.groups))} patients, "
            f"{int(self.has_tumor.sum())} with tumor)"
        )

    @property
    def patients(self) -> np.ndarray:
        """Id of each slice's patient."""
        return np.array(self.dataset.ids)[self.groups]

    @property
    def has_tumor(self) -> np.ndarray:
        """bool ``(N,)``"""
        return self.voxels.any(1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a slice."""
        return (4, *self.dataset._shape[:2])

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change when the data, the choice of slices, or their order does."""
        digest = hashlib.sha256(self.dataset.fingerprint.encode())
        digest.update(np.stack([self.groups, self.z]).tobytes())
        return digest.hexdigest()[:16]

    def subset(self, index: Sequence[int] | np.ndarray) -> BraTSSlices:
        """The slices at ``index`` (integers or a boolean mask), in that order."""
        index = np.asarray(index)
        columns = (getattr(self, name)[index] for name in ("groups", "rows", "z", "voxels"))
        return BraTSSlices(self.dataset, *columns)

    def batch(
        self, index: Sequence[int] | np.ndarray | torch.Tensor, out: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images uint8 ``(B, 4, H, W)`` and labels uint8 ``(B, H, W)`` at ``index``, on the CPU.

        Args:
            out: two such contiguous tensors for B slices or more, to be filled (pinned memory, say); the first B of
                each are returned.
        """
        index = np.asarray(index)
        groups, rows = self.groups[index].tolist(), self.rows[index].tolist()
        height, width = self.shape[1:]
        shapes = (len(rows), 4, height, width), (len(rows), height, width)
        if out is None:
            images, labels = (torch.empty(shape, dtype=torch.uint8) for shape in shapes)
        else:
            images, labels = (tensor[: len(rows)] for tensor in out)
            for tensor, shape in zip((images, labels), shapes, strict=True):
                if tensor.shape != shape or tensor.dtype != torch.uint8 or not tensor.is_contiguous():
                    raise DataError(f"out: expected contiguous uint8 {shape}, got {tensor.dtype} {tuple(tensor.shape)}")
        ids, records = self.dataset.ids, self.dataset._records
        maps = {group: records(ids[group]) for group in set(groups)}
        into_images, into_labels = images.numpy(), labels.numpy()
        for position, (group, row) in enumerate(zip(groups, rows, strict=True)):
            record = maps[group][row]
            into_images[position] = record[:4]
            into_labels[position] = record[4]
        return images, labels

    def statistics(self, index: Sequence[int] | np.ndarray | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation over the brain of the whole volume that each slice is from, float32 ``(B, 4)``.

        In the unit of the bytes: what `standardize` takes.
        """
        facts = [self.dataset._files[self.dataset.ids[group]][1] for group in self.groups[np.asarray(index)]]
        return tuple(torch.tensor([f[name] for f in facts], dtype=torch.float32) for name in ("mean", "std"))


def load_brats(
    root: str | os.PathLike[str] | None = None,
    *,
    damaged: str = "refuse",
    workers: int | None = None,
    progress: bool = False,
    channels: Sequence[str] | None = None,
    label_3: str | None = None,
) -> BraTSDataset:
    """Load the volumes under ``root``; the first call converts them into the store, later calls map it.

    Args:
        root: see `find_brats`.
        damaged: ``"refuse"`` raises an error that lists every patient that cannot be used, and every malformed row of
            the tables; ``"skip"`` warns with the same list, leaves those patients out and records them in ``skipped``.
        workers: processes that convert; by default one per core, at most 8, each with one patient in memory.
        progress: show a bar while patients are converted.
        channels: order of the channels in HDF5 slices, for a set whose order is not FLAIR, T1, T1c, T2. Without it
            that order is assumed, compared with what the voxels show, and refused if they contradict it.
        label_3: ``"ET"`` reads label 3 as enhancing tumor (4), as later years have it; else 3 is refused.

    Raises:
        DataError: nothing found, damaged patients, or channels in another order.
    """
    return _load(root, damaged, workers, progress, channels, label_3)


def _load(root, damaged="refuse", workers=None, progress=False, channels=None, label_3=None, shape=SHAPE):
    """`load_brats` for volumes of any shape (x, y, z), which the tests make small."""
    if damaged not in ("refuse", "skip"):
        raise DataError(f'damaged={damaged!r}: choose "refuse" or "skip"')
    if label_3 not in (None, "ET"):
        raise DataError(f'label_3={label_3!r}: choose "ET" or None')
    if channels is not None and sorted(channels) != sorted(MODALITIES):
        raise DataError(
            f"channels={tuple(channels)}: name {', '.join(MODALITIES)}, each once, in the order of the files"
        )
    if workers is not None and workers < 1:
        raise DataError(f"workers={workers}: at least 1")
    root = find_brats(root)
    options = Options(tuple(shape), tuple(channels or MODALITIES), label_3)
    sources = list_sources(root)
    store = store_folder(root, options)
    files, skipped = fill(store, sources, options, workers, progress)
    patients, problems = read_patients(root, [source.id for source in sources if source.id in files])
    if skipped or problems:
        report = _report(root, len(sources), skipped, problems)
        if damaged == "refuse" or not files:
            raise DataError(report)
        warnings.warn(report, stacklevel=3)
    notes = [f"{id}: {note}" for id, (_, facts) in files.items() for note in facts["notes"]] + problems
    phantom = any((folder / "phantom.json").is_file() for folder in [root, *root.parents][:5])
    dataset = BraTSDataset(
        "phantom" if phantom else "brats2020", root, tuple(patients), skipped, notes, store, files, options.shape
    )
    _check_order(dataset, any(source.kind == "hdf5" for source in sources) and channels is None)
    return dataset


def _report(root: Path, total: int, skipped: dict[str, str], problems: list[str]) -> str:
    lines = []
    if skipped:
        lines.append(f"{len(skipped)} of {total} patients under {root} cannot be used:")
        lines += [f"  {id}: {reason}" for id, reason in sorted(skipped.items())]
        lines.append('Copy or download them again, or leave them out with load_brats(..., damaged="skip").')
    if problems:
        lines.append(
            f'The tables beside {root} have rows that cannot be read (with damaged="skip" they count as unknown):'
        )
        lines += [f"  {problem}" for problem in problems]
    return "\n".join(lines)


def _check_order(dataset: BraTSDataset, assumed: bool) -> None:
    """Compare the order of the channels with what the voxels show.

    HDF5 slices do not name their channels: where the assumed order is contradicted by more patients than confirm it,
    the set is refused. NIfTI files do name them: a contradiction is noted, since one patient's files may be mixed up.
    """
    certain = {id: physics.order for id in dataset.ids if (physics := dataset.physics(id)).certain}
    votes = Counter(certain.values())
    order, count = votes.most_common(1)[0] if votes else (MODALITIES, 0)
    if assumed and order != MODALITIES:
        raise DataError(
            f"the channels of {dataset.root} look like {', '.join(order)} (in {count} of {len(certain)} patients that "
            f"can be told), not {', '.join(MODALITIES)}: load with channels={order!r}"
        )
    dataset.notes += [f"{id}: the voxels look like {', '.join(o)}" for id, o in certain.items() if o != MODALITIES]
