"""Single slices in class folders: from JPEG files to one uint8 array that every model of Part II reads.

The layout is that of the Brain Tumor MRI Dataset (M. Nickparvar, Kaggle, 2021)::

    ROOT/Training/glioma/*.jpg   ROOT/Training/meningioma/*.jpg   ROOT/Training/notumor/*.jpg   ...
    ROOT/Testing/glioma/*.jpg    ...

Decoding 7,000 JPEG files takes most of a minute; reading one array of bytes takes a fraction of a second. So the work
is done once: crop the empty margins, resize, keep the bytes in a cache, and know each image by the hash of its file.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
import sys
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from brainlib.data.splits import link_groups
from brainlib.files import DataError, atomic_path, data_root

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
SPLITS = ("Training", "Testing")
SUFFIXES = (".jpg", ".jpeg", ".png")
CROPPED = 256  # the side to which a cropped head is resized before it is brought to the size of the model
CACHE_VERSION = 1  # raise it when the pixels that `read_slice` makes would change
MATCH_TABLE = Path(__file__).parent / "tables" / "brain_tumor_mri_match.csv.gz"


@dataclass(frozen=True)
class MRIDataset:
    """Slices with their labels, in memory.

    Attributes:
        images: uint8 ``(N, H, W)``, margins cropped.
        labels: int64 ``(N,)``, an index into ``classes``.
        groups: int64 ``(N,)``. Slices that share a group may come from one patient (or are copies of one picture), so
            an honest split keeps a group whole. See `slice_groups`.
        paths: file names relative to the root, with forward slashes.
        hashes: SHA-256 of each file's bytes (hex).
        sizes: int64 ``(N, 2)``, height and width of each file in pixels before cropping.
        splits: ``"Training"`` or ``"Testing"`` for each slice: the folder that its publisher put it in.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    paths: np.ndarray
    hashes: np.ndarray
    sizes: np.ndarray
    splits: np.ndarray
    classes: tuple[str, ...] = CLASSES
    channels: int = field(default=3, repr=False)  # the models take three equal channels, as the study's did

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        counts = ", ".join(f"{c} {n}" for c, n in zip(self.classes, self.counts(), strict=True))
        groups = len(np.unique(self.groups))
        return f"MRIDataset({self.name}: {len(self)} slices of {self.images.shape[1:]}, {groups} groups; {counts})"

    def counts(self) -> np.ndarray:
        """Slices of each class, in the order of ``classes``."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def subset(self, index: Sequence[int] | np.ndarray) -> MRIDataset:
        """The slices at ``index`` (integers or a boolean mask), in that order."""
        per_slice = ("images", "labels", "groups", "paths", "hashes", "sizes", "splits")
        return replace(self, **{name: getattr(self, name)[index] for name in per_slice})

    def batch(self, index: torch.Tensor | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Slices and labels at ``index``: uint8 ``(B, 1, H, W)`` and int64 ``(B,)``, on the CPU."""
        index = np.asarray(index)
        return torch.from_numpy(self.images[index]).unsqueeze(1), torch.from_numpy(self.labels[index])

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change when a file, a label, the order or the size of the images does."""
        digest = hashlib.sha256(repr((self.images.shape, self.labels.tolist())).encode())
        digest.update("".join(self.hashes.tolist()).encode())
        return digest.hexdigest()[:16]


def load_mri(
    root: str | os.PathLike[str] | None = None, size: int = 128, split: str | None = None, *, progress: bool = False
) -> MRIDataset:
    """Load the slices under ``root`` as one array; the first call decodes the files, later calls read the cache.

    Args:
        root: the folder that holds ``Training`` and ``Testing``, or one a few levels above it. Default:
            ``brain-tumor-mri`` under `brainlib.files.data_root`.
        size: side of the square images, in pixels.
        split: ``"Training"`` or ``"Testing"`` for one folder, None for both.
        progress: show a bar while files are decoded.

    Raises:
        DataError: no such folder, a missing or empty class folder, or unreadable images (all of them, in one report).
    """
    if split is not None and split not in SPLITS:
        raise DataError(f"split={split!r}: choose one of {', '.join(map(repr, SPLITS))}, or None for both")
    if not 16 <= size <= 1024:
        raise DataError(f"size={size}: the side of an image must lie between 16 and 1024 pixels")
    root = find_root(data_root() / "brain-tumor-mri" if root is None else root)
    files = list_files(root)
    cache = data_root() / "cache" / f"mri-{_cache_key(root, files, size)}.npz"
    arrays = _read_cache(cache)
    if arrays is None:
        arrays = _decode(root, files, size, progress)
        with atomic_path(cache) as temporary:
            np.savez(temporary, **arrays)
    paths = np.array([path.relative_to(root).as_posix() for path in files])
    dataset = MRIDataset(
        name="phantom" if (root.parent / "phantom.json").exists() else "brain-tumor-mri",
        images=arrays["images"],
        labels=np.array([CLASSES.index(path.parent.name) for path in files]),
        groups=slice_groups(root, paths, arrays["hashes"]),
        paths=paths,
        hashes=arrays["hashes"],
        sizes=arrays["sizes"],
        splits=np.array([path.parent.parent.name for path in files]),
    )
    return dataset if split is None else dataset.subset(dataset.splits == split)


def find_root(root: str | os.PathLike[str]) -> Path:
    """The folder at or up to three levels below ``root`` that holds ``Training`` and ``Testing``."""
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder. Download the Brain Tumor MRI Dataset from Kaggle "
            "(masoudnickparvar/brain-tumor-mri-dataset), unpack it there, or set BRAINLIB_DATA to the folder above it."
        )
    for depth in range(4):
        for candidate in sorted(root.glob("/".join("*" * depth))) if depth else [root]:
            if all((candidate / split).is_dir() for split in SPLITS):
                return candidate.resolve()
    raise DataError(f"{root}: neither this folder nor one below it holds the folders Training and Testing.")


def list_files(root: Path) -> list[Path]:
    """Image files of ``root`` in a fixed order: Training before Testing, then by class, then by name."""
    files: list[Path] = []
    for split in SPLITS:
        for name in CLASSES:
            folder = root / split / name
            found = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
            if not found:
                state = "holds no image (.jpg, .jpeg, .png)" if folder.is_dir() else "is missing"
                raise DataError(f"{folder} {state}: download or copy that class again; all four are needed.")
            files += found
    return files


def crop_margins(image: np.ndarray, threshold: int = 20) -> np.ndarray:
    """Cut the dark margins off a slice.

    The box is that of the largest connected region brighter than ``threshold`` in a smoothed copy, so that a stray
    letter in a corner of the picture does not keep the margin. A picture with no such region is returned whole.

    Args:
        image: uint8 ``(H, W)``.
    """
    bright = ndimage.uniform_filter(image, size=5) > threshold
    regions, count = ndimage.label(bright)
    if count == 0:
        return image
    largest = 1 + int(np.argmax(np.bincount(regions.ravel())[1:]))
    rows, columns = ndimage.find_objects(regions)[largest - 1]
    return image[rows, columns]


def read_slice(path: str | os.PathLike[str], size: int = 128) -> tuple[np.ndarray, tuple[int, int], str]:
    """Read one file: uint8 ``(size, size)`` with margins cropped, its (height, width), and the hash of its bytes.

    The head is resized to 256 pixels first and to ``size`` then, as the study did.
    """
    content = Path(path).read_bytes()
    with Image.open(path) as picture:
        if picture.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip instead of scale
            picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
        grey = picture.convert("L")
    head = Image.fromarray(crop_margins(np.asarray(grey))).resize((CROPPED, CROPPED), Image.Resampling.BILINEAR)
    if size != CROPPED:
        head = head.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(head), (grey.height, grey.width), hashlib.sha256(content).hexdigest()


def slice_groups(root: Path, paths: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Number the groups of slices that may show the same patient, int64 ``(N,)``.

    Slices are linked when their files are byte-identical, when ``slices.csv`` beside the folders names one patient for
    both (the phantom has one), or, for the Kaggle set, when the match table finds them in the collections that it was
    made from: the same source picture (mirrored copies too), or neighbors in the source that share class and
    cross-validation fold, which very likely are slices of one patient.
    """
    keys = [list(map(str, hashes))]
    table = root / "slices.csv"
    if table.exists():
        with table.open(newline="", encoding="utf-8") as lines:
            patient = {row["path"]: row["patient"] for row in csv.DictReader(lines)}
        keys.append([patient.get(path) for path in paths])
    else:
        match = read_match_table()
        keys.append([match[path].picture if path in match else None for path in paths])
        keys.append([match[path].series if path in match else None for path in paths])
    return link_groups(*keys)


@dataclass(frozen=True)
class Match:
    """Where a slice of the Kaggle set comes from, as far as it was found (see ``tables/README.md``)."""

    picture: str | None  # the source picture, the same for mirrored copies
    series: str | None  # a run of neighboring source slices of one class and fold: very likely one patient
    fold: int  # fold 1-5 of the source's patient-wise cross-validation; 0 where there is none
    mirrored: bool  # whether the slice is a flipped or turned copy of its source


def read_match_table() -> dict[str, Match]:
    """Matches by path relative to the root, for every slice whose correlation with a source picture exceeds 0.99."""
    matches = {}
    with gzip.open(MATCH_TABLE, "rt", newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            matches[row["path"]] = Match(
                picture=row["picture"],
                series=row["series"] or None,
                fold=int(row["fold"]),
                mirrored=row["transform"] != "0",
            )
    return matches


def _decode(root: Path, files: list[Path], size: int, progress: bool) -> dict[str, np.ndarray]:
    """Read every file; broken ones are gathered into one report."""
    images = np.empty((len(files), size, size), np.uint8)
    sizes = np.empty((len(files), 2), np.int64)
    hashes = [""] * len(files)
    broken: list[str] = []

    def read(position: int) -> None:
        try:
            images[position], sizes[position], hashes[position] = read_slice(files[position], size)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            broken.append(f"  {files[position].relative_to(root).as_posix()}: {error}")

    # Pillow lets go of the interpreter lock while it decodes and resizes, so threads are enough.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        work = pool.map(read, range(len(files)))
        for _ in tqdm(work, "decoding", len(files), disable=not progress, file=sys.stdout, leave=False, ncols=80):
            pass
    if broken:
        shown = "\n".join(sorted(broken)[:20]) + ("\n  ..." if len(broken) > 20 else "")
        raise DataError(
            f"{len(broken)} of {len(files)} images under {root} cannot be read; download or delete them:\n{shown}"
        )
    return {"images": images, "sizes": sizes, "hashes": np.array(hashes)}


def _read_cache(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a cache file, None where there is none or it is damaged: it is then made again."""
    try:
        with np.load(path) as stored:
            return {name: stored[name] for name in ("images", "sizes", "hashes")}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        return None


def _cache_key(root: Path, files: list[Path], size: int) -> str:
    """A hash of everything that the cached array depends on: names, lengths and times of the files, and the size."""
    digest = hashlib.sha256(repr((CACHE_VERSION, CROPPED, size, str(root))).encode())
    for path in files:
        try:
            status = path.stat()
        except OSError as error:  # a link that leads nowhere
            raise DataError(f"{path} cannot be read ({error.strerror}): download or delete it") from error
        digest.update(f"{path.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:20]
