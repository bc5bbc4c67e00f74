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
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from brainlib.data.duplicates import THUMBNAIL, near_duplicates, perceptual_hash, thumbnail
from brainlib.data.splits import link_groups, link_pairs
from brainlib.files import DataError, atomic_path, data_root

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
SPLITS = ("Training", "Testing")
SUFFIXES = (".jpg", ".jpeg", ".png")
CROPPED = 256  # the side to which a cropped head is resized before it is brought to the size of the model
CACHE_VERSION = 2  # raise it when what `read_slice` returns would change
RING = 4  # pixels: width of the frame whose brightness `ImageFacts.ring` is
CACHED = ("images", "sizes", "hashes", "mode", "margins", "ring", "phash", "copies")
MATCH_TABLE = Path(__file__).parent / "tables" / "brain_tumor_mri_match.csv.gz"


@dataclass(frozen=True)
class MRIDataset:
    """Slices with their labels, in memory.

    Attributes:
        images: uint8 ``(N, H, W)``, margins cropped.
        labels: int64 ``(N,)``, an index into ``classes``.
        groups: int64 ``(N,)``. Slices that share a group may come from one patient (or are copies of one picture), so
            an honest split keeps a group whole. See `slice_origins`.
        paths: file names relative to the root, with forward slashes.
        hashes: SHA-256 of each file's bytes (hex).
        sizes: int64 ``(N, 2)``, height and width of each file in pixels before cropping.
        splits: ``"Training"`` or ``"Testing"`` for each slice: the folder that its publisher put it in.
        pictures: int64 ``(N,)``, the same for copies of one picture, mirrored, turned or brightened ones too.
        series: int64 ``(N,)``, the same for slices that very likely show one patient; -1 where nothing is known.
        folds: int64 ``(N,)``, fold 1-5 of the cross-validation published with a source of the set; 0 for none.
        facts: further columns, one value or row for each slice: ``mode`` (of the file, such as "L" or "RGB"),
            ``margins`` (pixels cut off above, below, left, right), ``ring`` (mean brightness of the outermost pixels of
            the file) and ``phash`` (perceptual hashes under the eight symmetries of a square).

    The last four may be None for a set made by hand; `pictures` then falls back to the hashes of the files.
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
    pictures: np.ndarray | None = None
    series: np.ndarray | None = None
    folds: np.ndarray | None = None
    facts: dict[str, np.ndarray] | None = None

    def __post_init__(self) -> None:
        defaults = {"series": np.full(len(self.labels), -1), "folds": np.zeros(len(self.labels), int), "facts": {}}
        if self.pictures is None:
            defaults["pictures"] = np.unique(self.hashes.astype(str), return_inverse=True)[1]
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        counts = ", ".join(f"{c} {n}" for c, n in zip(self.classes, self.counts(), strict=True))
        groups = len(np.unique(self.groups))
        size = " × ".join(map(str, self.images.shape[1:]))
        return f"MRIDataset({self.name}: {len(self)} slices of {size}, {groups} groups;\n  {counts})"

    def counts(self) -> np.ndarray:
        """Slices of each class, in the order of ``classes``."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def subset(self, index: Sequence[int] | np.ndarray) -> MRIDataset:
        """The slices at ``index`` (integers or a boolean mask), in that order."""
        per_slice = ("images", "labels", "groups", "paths", "hashes", "sizes", "splits", "pictures", "series", "folds")
        columns = {name: getattr(self, name)[index] for name in per_slice}
        return replace(self, **columns, facts={name: column[index] for name, column in self.facts.items()})

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
    origin = slice_origins(root, paths, arrays["hashes"], arrays["copies"])
    dataset = MRIDataset(
        name="phantom" if (root.parent / "phantom.json").exists() else "brain-tumor-mri",
        images=arrays["images"],
        labels=np.array([CLASSES.index(path.parent.name) for path in files]),
        groups=origin.groups,
        paths=paths,
        hashes=arrays["hashes"],
        sizes=arrays["sizes"],
        splits=np.array([path.parent.parent.name for path in files]),
        pictures=origin.pictures,
        series=origin.series,
        folds=origin.folds,
        facts={name: arrays[name] for name in ("mode", "margins", "ring", "phash")},
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


def bright_region(image: np.ndarray, threshold: int = 20) -> np.ndarray | None:
    """The head: the largest connected region brighter than ``threshold``, bool ``(H, W)``; None if there is none.

    Args:
        image: uint8 ``(H, W)``.
        threshold: gray level, of a copy smoothed over 5 pixels.
    """
    regions, count = ndimage.label(ndimage.uniform_filter(image, size=5) > threshold)
    return regions == 1 + np.argmax(np.bincount(regions.ravel())[1:]) if count else None


def crop_box(image: np.ndarray, threshold: int = 20) -> tuple[slice, slice]:
    """Rows and columns that hold the head.

    The box is that of `bright_region`, so that a stray letter in a corner of the picture does not keep the margin. A
    picture with no such region is kept whole.

    Args:
        image: uint8 ``(H, W)``.
    """
    region = bright_region(image, threshold)
    if region is None:
        return slice(0, image.shape[0]), slice(0, image.shape[1])
    return ndimage.find_objects(region.astype(np.uint8))[0]


def crop_margins(image: np.ndarray, threshold: int = 20) -> np.ndarray:
    """Cut the dark margins off a slice; see `crop_box`."""
    return image[crop_box(image, threshold)]


class ImageFacts(NamedTuple):
    """What can be said of one image file without knowing what it shows."""

    size: tuple[int, int]  # height, width
    mode: str  # of the file: "L" for gray, "RGB" for three channels, ...
    margins: tuple[int, int, int, int]  # pixels that `crop_box` cuts off above, below, left, right
    ring: float  # mean brightness of a frame of 4 pixels along the edge of the file, 0-255
    sha256: str
    phash: np.ndarray  # uint64 (8,), of the cropped head


def read_slice(path: str | os.PathLike[str], size: int = 128) -> tuple[np.ndarray, ImageFacts]:
    """Read one file: uint8 ``(size, size)`` with margins cropped, and the facts of the file.

    The head is resized to 256 pixels first and to ``size`` then, as the study did.
    """
    image, facts, _ = _read(Path(path), size)
    return image, facts


def image_facts(path: str | os.PathLike[str]) -> ImageFacts:
    """The facts of one image file."""
    return _read(Path(path), CROPPED)[1]


def _read(path: Path, size: int) -> tuple[np.ndarray, ImageFacts, np.ndarray]:
    content = path.read_bytes()
    with Image.open(path) as picture:
        mode = picture.mode
        if mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip instead of scale
            picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
        grey = np.asarray(picture.convert("L"))
    rows, columns = crop_box(grey)
    head = Image.fromarray(grey[rows, columns]).resize((CROPPED, CROPPED), Image.Resampling.BILINEAR)
    inside = np.zeros(grey.shape, bool)
    inside[RING:-RING, RING:-RING] = True
    height, width = grey.shape
    facts = ImageFacts(
        size=(height, width),
        mode=mode,
        margins=(rows.start, height - rows.stop, columns.start, width - columns.stop),
        ring=float(grey[~inside].mean()),
        sha256=hashlib.sha256(content).hexdigest(),
        phash=perceptual_hash(np.asarray(head)),
    )
    small = thumbnail(np.asarray(head))
    if size != CROPPED:
        head = head.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(head), facts, small


class Origins(NamedTuple):
    """What is known of where slices come from; see the attributes of the same names of `MRIDataset`."""

    groups: np.ndarray
    pictures: np.ndarray
    series: np.ndarray
    folds: np.ndarray


def slice_origins(root: Path, paths: np.ndarray, hashes: np.ndarray, copies: np.ndarray) -> Origins:
    """Number the pictures, series and groups of slices, each int64 ``(N,)``.

    Where ``slices.csv`` beside the folders names the patient of each slice (the phantom has one), a series is a
    patient. For the Kaggle set the match table finds slices in the collections that it was made from: two slices are
    one picture if they come from one picture there, or are near-duplicates of each other, and a series is a run of
    neighbors in the source that share class and cross-validation fold, very likely slices of one patient. A group holds
    all slices that are linked by a byte-identical file, a picture or a series.

    Args:
        copies: int64 ``(N,)``, equal for near-duplicates.
    """
    table = root / "slices.csv"
    if table.exists():
        with table.open(newline="", encoding="utf-8") as lines:
            patient = {row["path"]: row["patient"] for row in csv.DictReader(lines)}
        pictures = link_groups(list(map(str, hashes)))
        series = [patient.get(path) for path in paths]
        folds = np.zeros(len(paths), np.int64)
    else:
        match = read_match_table()
        found = [match.get(path) for path in paths]
        pictures = link_groups(list(map(str, hashes)), [m and m.picture for m in found], list(copies))
        series = [m and m.series for m in found]
        folds = np.array([m.fold if m else 0 for m in found], np.int64)
    names = {name: number for number, name in enumerate(dict.fromkeys(s for s in series if s))}
    numbers = np.array([names.get(name, -1) for name in series], np.int64)
    return Origins(link_groups(list(pictures), series), pictures, numbers, folds)


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
    thumbnails = np.empty((len(files), THUMBNAIL, THUMBNAIL), np.uint8)
    facts: list[ImageFacts | None] = [None] * len(files)
    broken: list[str] = []

    def read(position: int) -> None:
        try:
            images[position], facts[position], thumbnails[position] = _read(files[position], size)
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
    phash = np.stack([f.phash for f in facts])
    return {
        "images": images,
        "sizes": np.array([f.size for f in facts], np.int64),
        "hashes": np.array([f.sha256 for f in facts]),
        "mode": np.array([f.mode for f in facts]),
        "margins": np.array([f.margins for f in facts], np.int64),
        "ring": np.array([f.ring for f in facts]),
        "phash": phash,
        "copies": link_pairs(near_duplicates(thumbnails, phash).pairs, len(files)),
    }


def _read_cache(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a cache file, None where there is none or it is damaged: it is then made again."""
    try:
        with np.load(path) as stored:
            return {name: stored[name] for name in CACHED}
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
