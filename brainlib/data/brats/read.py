"""Files of one patient to arrays, and everything for which a patient is refused."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import h5py
import nibabel as nib
import numpy as np

from .layout import MODALITIES, SUFFIXES, Source, ranges

SHAPE = (240, 240, 155)


class Damage(Exception):
    """Why a patient cannot be used."""


@dataclass
class Raw:
    """One patient as read: channels one after the other (to hold one in memory at a time), labels, positions.

    Attributes:
        channels: four times float32 ``(Z, H, W)``, in the order of `MODALITIES`, background exactly 0.
        labels: uint8 ``(Z, H, W)``, values 0, 1, 2, 4.
        z: positions of the slices.
    """

    channels: Iterator[np.ndarray]
    labels: np.ndarray
    z: list[int]
    notes: list[str] = field(default_factory=list)


def read_patient(
    source: Source,
    shape: tuple[int, int, int] = SHAPE,
    channels: tuple[str, ...] = MODALITIES,
    label_3: str | None = None,
) -> Raw:
    """Read one patient; arguments as in `load_brats`. Raises `Damage` with the reason, also while channels are read."""
    if source.damage:
        raise Damage(source.damage)
    if source.kind == "nifti":
        return _read_nifti(source, shape, label_3)
    return _read_hdf5(source, shape, channels)


def check_labels(labels: np.ndarray, label_3: str | None = None) -> np.ndarray:
    """Labels as uint8 in {0, 1, 2, 4}; ``label_3="ET"`` turns 3 into 4 where there is no 4."""
    present = np.unique(labels)
    if 3 in present and 4 not in present and np.isin(present, (0, 1, 2, 3)).all():
        if label_3 != "ET":
            raise Damage(
                "mask holds label 3: BraTS 2020 calls enhancing tumor 4, later years and many conversions 3; "
                'if that is so here, load with label_3="ET"'
            )
        labels = np.where(labels == 3, 4, labels)
    elif foreign := [f"{value:g}" for value in present if value not in (0, 1, 2, 4)]:
        raise Damage(f"mask holds label {', '.join(foreign[:5])}; expected 0, 1, 2, 4")
    return labels.astype(np.uint8)


# ---- official NIfTI files


def _open(path: str) -> nib.Nifti1Image:
    """Open a NIfTI file in memory. All bytes are read, so that the checksum of a compressed one is compared."""
    with open(path, "rb") as file:
        content = file.read()
    if content[:2] == b"\x1f\x8b":  # by content: compressed files named .nii exist
        content = gzip.decompress(content)
    return nib.Nifti1Image.from_bytes(content)


def _oriented(path: str, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Values with axes to the left, to the back and upward, float32 or as stored, and the matching affine.

    Flips and exchanges of axes are undone, which moves no value between voxels. Anything that would need
    interpolation is refused.
    """
    name = os.path.basename(path)
    try:
        image = _open(path)
        affine, header = image.affine, image.header
        if header["sform_code"] == 0 and header["qform_code"] == 0:
            raise Damage(f"{name}: the header does not say how the volume lies in space (no sform, no qform)")
        spacing = nib.affines.voxel_sizes(affine)
        if len(image.shape) != 3 or not np.allclose(spacing, 1, atol=1e-3):
            size, steps = (" x ".join(f"{v:g}" for v in values) for values in (image.shape, spacing))
            raise Damage(f"{name}: shape {size}, spacing {steps} mm; expected three axes of 1 mm")
        if (angle := np.degrees(nib.affines.obliquity(affine)).max()) > 0.1:
            raise Damage(f"{name}: axes oblique by {angle:.1f} degrees; resample it to the axes of the scanner")
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(("L", "P", "S"))
        )
        values = nib.apply_orientation(np.asarray(image.dataobj), turn)
        if values.dtype.kind not in "iuf":
            raise Damage(f"{name}: holds {values.dtype}, not numbers")
        affine = affine @ nib.orientations.inv_ornt_aff(turn, image.shape)
    except (Damage, MemoryError):
        raise
    except Exception as error:  # whatever a reader throws at a damaged file
        raise Damage(f"{name}: cannot be read ({_short(error)})") from error
    if values.shape != shape:
        raise Damage(f"{name}: shape {_by(values.shape)}; expected {_by(shape)} (left, back, up)")
    if not np.isfinite(values).all():
        raise Damage(f"{name}: holds values that are not finite (NaN or infinity)")
    return values, affine


def _read_nifti(source: Source, shape: tuple[int, int, int], label_3: str | None) -> Raw:
    mask, grid = _oriented(source.files["seg"], shape)

    def channels() -> Iterator[np.ndarray]:
        for suffix in SUFFIXES[:4]:
            values, affine = _oriented(source.files[suffix], shape)
            if not np.allclose(affine, grid, atol=1e-2):
                raise Damage(f"{suffix} and mask lie on different grids: corners {_corner(affine)} and {_corner(grid)}")
            yield np.ascontiguousarray(values.transpose(2, 0, 1), np.float32)

    labels = np.ascontiguousarray(check_labels(mask, label_3).transpose(2, 0, 1))
    return Raw(channels(), labels, list(range(shape[2])))


def _corner(affine: np.ndarray) -> str:
    return "(" + ", ".join(f"{v:g}" for v in affine[:3, 3]) + ") mm"


# ---- Kaggle's HDF5 slices


def background(image: np.ndarray) -> np.ndarray:
    """The value of the background in each channel of ``(H, W, C)``: the most frequent one on the picture's frame.

    Standardized images have their background at a negative constant that depends on the volume. A skull-stripped
    brain stays clear of the outermost rows and columns, whatever the scale. Raises `Damage` where less than half of
    the frame has one value.
    """
    frame = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
    found = np.empty(image.shape[2])
    for channel, column in enumerate(frame.T):
        values, counts = np.unique(column, return_counts=True)
        found[channel] = values[counts.argmax()]
        if 2 * counts.max() < len(frame):
            raise Damage("no constant background around the brain")
    return found


def _read_hdf5(source: Source, shape: tuple[int, int, int], channels: tuple[str, ...]) -> Raw:
    height, width, depth = shape
    z = list(source.files)
    if outside := [n for n in z if n >= depth]:
        raise Damage(f"slices {ranges(outside)}: a volume has slices 0 to {depth - 1}")
    values = np.empty((4, len(z), height, width), np.float32)
    labels = np.zeros((len(z), height, width), np.uint8)
    floor = np.empty((len(z), 4))
    for row, path in enumerate(source.files.values()):
        name = os.path.basename(path)
        try:
            with h5py.File(path, "r") as file:
                image, mask = file["image"][()], file["mask"][()]
        except MemoryError:
            raise
        except Exception as error:
            raise Damage(f"{name}: cannot be read ({_short(error)})") from error
        if image.shape != (height, width, 4) or mask.shape != (height, width, 3):
            expected = f"{height} x {width} x 4 and 3"
            raise Damage(f"{name}: image {_by(image.shape)}, mask {_by(mask.shape)}; expected {expected}")
        if not np.isfinite(image).all():
            raise Damage(f"{name}: holds values that are not finite (NaN or infinity)")
        if not np.isin(mask, (0, 1)).all() or mask.sum(-1, dtype=int).max() > 1:
            raise Damage(f"{name}: the three masks (NCR, ED, ET) are not 0 or 1, or overlap")
        try:
            floor[row] = background(image)
        except Damage as damage:
            raise Damage(f"{name}: {damage}") from None
        values[:, row] = (image - floor[row]).transpose(2, 0, 1)
        labels[row] = mask @ np.array([1, 2, 4], np.uint8)
    order = [channels.index(name) for name in MODALITIES]
    raw = Raw((values[channel] for channel in order), labels, z)
    if np.ptp(floor, axis=0).max() > 1e-6 * np.abs(floor).max():
        raw.notes.append("each slice was standardized by itself: brightness does not compare between its slices")
    return raw


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _short(error: Exception) -> str:
    """The first line of a message, shortened."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text if len(text) <= 100 else text[:97] + "..."
