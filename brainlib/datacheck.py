"""Say which data are there, whether they are complete, and how to get what is missing; draw a sheet of samples."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from brainlib.data.brats.layout import MODALITIES, Source, find_brats, list_sources
from brainlib.data.kaggle import SETS, TABLES, KaggleSet, accepted_counts, gigabytes, shorten, walk
from brainlib.data.mri import find_root
from brainlib.files import DataError, atomic_path, data_root

PHANTOM = "make it with 'brainlib data phantom'"
NIFTI = replace(
    SETS["brats"],
    pattern=r"(?:^|/)(BraTS20_Training_\d+)/[^/]+\.nii(?:\.gz)?$",
    expected=dict.fromkeys([f"BraTS20_Training_{n:03d}" for n in range(1, 370)], 5),
)
# Outlines of the stored labels: value in NIfTI files, channel in HDF5 slices, color.
LABELS = ((2, 1, "#F0E442"), (1, 0, "#D55E00"), (4, 2, "#56B4E9"))


@dataclass(frozen=True)
class Finding:
    """What was found of one data set. ``state`` is ``"complete"``, ``"incomplete"`` or ``"absent"``."""

    name: str
    state: str
    text: str
    sheet: Path | None = None


def check_data(root: Path | None = None, *, pictures: bool = True) -> list[Finding]:
    """Look at the phantom's two sets and at the two real ones; takes seconds, since files are counted, not opened.

    Args:
        root: data root. Default: `brainlib.files.data_root`.
        pictures: write a sheet of samples for each set to ``check/`` under the root.
    """
    root = data_root() if root is None else Path(root)
    try:
        summary = json.loads((root / "phantom" / "phantom.json").read_text(encoding="utf-8"))["summary"]
        slices = {f"{s}/{c}": n for s, classes in summary["images"].items() for c, n in classes.items()}
        each = summary["volume_slices"] // summary["volumes"]
        volumes = {f"volume_{n}": each for n in range(1, summary["volumes"] + 1)}
    except (OSError, ValueError, KeyError, TypeError):  # no phantom, or one that was not finished
        slices = volumes = {}
    tables = dict.fromkeys(TABLES, 1) if volumes else {}
    phantom = (
        ("phantom slices", replace(SETS["mri"], folder="phantom/brain-tumor-mri", expected=slices)),
        ("phantom volumes", replace(SETS["brats"], folder="phantom/brats2020", expected={**volumes, **tables})),
    )
    findings = [inspect(name, root, (spec,), PHANTOM) for name, spec in phantom]
    for specs in ((SETS["mri"],), (SETS["brats"], NIFTI)):
        spec = specs[0]
        get = f"'brainlib data kaggle {spec.name}' downloads it; or download {spec.page} in a browser and unpack it"
        findings.append(inspect(spec.folder, root, specs, f"{get} in {root / spec.folder}"))
    draw = {"phantom slices": draw_slices, "brain-tumor-mri": draw_slices}
    if pictures:
        findings = [add_sheet(f, root, draw.get(f.name, draw_volumes)) for f in findings]
    return findings


def inspect(name: str, root: Path, specs: Iterable[KaggleSet], get: str) -> Finding:
    """Count the files of one data set, in each of the forms that ``specs`` describe; the first complete one counts.

    A complete set must also be found by the function that loads it.
    """
    specs = tuple(specs)
    find = find_root if specs[0].name == "mri" else find_brats
    folder = root / specs[0].folder
    part = root / "downloads" / f"{specs[0].slug.replace('/', '-')}.zip.part"
    notes = (
        [f"{gigabytes(part.stat().st_size)} of it are downloaded; the same command goes on"] if part.exists() else []
    )
    names = list(walk(folder)) if folder.is_dir() else []
    if not names:
        hints = [f"{p} holds it: rename that folder to {folder.name}" for p in elsewhere(root, specs)]
        return Finding(
            name, "absent", "; ".join([f"not found at {folder}", *zipped(root, specs[0]), *hints, *notes, get])
        )
    if not specs[0].expected:
        return Finding(name, "incomplete", f"{folder.parent} holds no phantom.json; {get}")
    reports = []
    for spec in specs:
        found = spec.tally(names)
        expected = accepted_counts(folder) or spec.expected
        wrong, total = spec.differences(found, expected), sum(expected.values())
        lacking = [key for key, count in expected.items() if found.get(key, 0) < count]
        if found and not lacking:
            try:
                find(folder)
            except DataError as error:
                return Finding(name, "incomplete", str(error).replace("\n", " "))
            more = f"; more than expected: {shorten(wrong)}" if wrong else ""
            other = "; other counts than those of the course, kept on request" if accepted_counts(folder) else ""
            return Finding(name, "complete", f"{describe(found)} of {total} files in {folder}{more}{other}")
        if set(found) - TABLES:
            reports.append(f"{describe(found)} of {total} files in {folder}{listing(found, expected, wrong)}")
    zips = zipped(folder, specs[0])
    reports = reports or [f"{folder} holds other files" if not zips else f"{folder} is not unpacked"]
    if not zips and name == specs[0].folder:
        get = f"'brainlib data kaggle {specs[0].name} --force' makes it anew; or unpack {specs[0].page} there again"
    return Finding(name, "incomplete", "; ".join([*reports, *zips, *notes, get]))


def describe(found: Mapping[str, int]) -> str:
    """What was found, in words: the classes of each folder or the number of patients, then the number of files."""
    if not any("/" in key for key in found):
        return f"{len(set(found) - TABLES)} patients, {sum(found.values())}"
    parts = []
    for split in ("Training", "Testing"):
        classes = {key.split("/")[1]: count for key, count in sorted(found.items()) if key.startswith(split)}
        listing = ", ".join(f"{name} {count}" for name, count in classes.items())
        parts.append(f"{split} {sum(classes.values())} ({listing})")
    return f"{', '.join(parts)}, {sum(found.values())}"


def listing(found: Mapping[str, int], expected: Mapping[str, int], wrong: list[str]) -> str:
    """Which keys are missing altogether, and which have another count than expected."""
    missing = [key for key in expected if key not in found]
    counts = [entry for entry in wrong if entry.rsplit(" ", 3)[0] in found]
    return (f"; missing: {shorten(missing)}" if missing else "") + (f"; found: {shorten(counts)}" if counts else "")


def zipped(folder: Path, spec: KaggleSet) -> list[str]:
    """A line for each archive of the data set that lies in ``folder`` and was not unpacked."""
    lines = []
    for path in sorted(folder.glob("*.zip")) if folder.is_dir() else ():
        try:
            with zipfile.ZipFile(path) as content:
                holds = bool(spec.tally(content.namelist()))
        except (OSError, zipfile.BadZipFile):
            lines.append(f"{path} is not a complete zip file: delete it")
            continue
        if holds:
            force = " --force" if folder.name == spec.folder else ""
            lines.append(f"{path} holds it, not unpacked: 'brainlib data kaggle {spec.name} --archive {path}{force}'")
    return lines


def elsewhere(root: Path, specs: Iterable[KaggleSet]) -> list[Path]:
    """Folders beside the expected one, under names that unpacking by hand gives, which hold files of the set."""
    specs = tuple(specs)
    names = ("archive", specs[0].slug.split("/")[1], "BraTS2020_training_data", "MICCAI_BraTS2020_TrainingData")
    return [root / n for n in names if (root / n).is_dir() and any(s.tally(walk(root / n)) for s in specs)]


def add_sheet(finding: Finding, root: Path, draw: Callable[[Path, Path], None]) -> Finding:
    """Draw samples of what is there into ``check/NAME.png``; a set that cannot be drawn says so in its text."""
    if finding.state == "absent":
        return finding
    specs = {"phantom slices": "phantom/brain-tumor-mri", "phantom volumes": "phantom/brats2020"}
    target = root / "check" / f"{finding.name.replace(' ', '-')}.png"
    try:
        draw(root / specs.get(finding.name, finding.name), target)
        return replace(finding, sheet=target)
    except DataError as error:
        return replace(finding, text=f"{finding.text}; no picture: {error}")


def draw_slices(folder: Path, target: Path) -> None:
    """One row for each class, with eight slices of the Training folder at even distances."""
    from PIL import Image

    names = sorted(walk(folder))
    rows: dict[str, list[np.ndarray | str]] = {}
    for key in [key for key in SETS["mri"].expected if key.startswith("Training/")]:
        mine = [name for name in names if SETS["mri"].tally([name])[key]]
        rows[key.split("/")[1]] = row = []
        for name in [mine[i] for i in np.unique(np.linspace(0, len(mine) - 1, 8).astype(int))] if mine else ():
            try:
                with Image.open(folder / name) as picture:
                    picture.thumbnail((192, 192))
                    row.append(np.asarray(picture.convert("L")))
            except (OSError, SyntaxError, ValueError):
                row.append("unreadable")
    _draw(rows, 8, None, target)


def draw_volumes(folder: Path, target: Path) -> None:
    """One row for each of four patients: four modalities, and the label outlines, on the middle slice of the tumor."""
    sources = list_sources(find_brats(folder))
    rows = {}
    for source in [sources[i] for i in np.unique(np.linspace(0, len(sources) - 1, 4).astype(int))]:
        label = source.id.replace("BraTS20_Training_", "patient ")
        try:
            images, masks = read_scan(source) if source.kind == "nifti" else read_slices(source)
            rows[label] = [*images, (images[0], masks)]
        except Exception as error:  # a damaged file raises whatever its reader likes
            rows[label] = [source.damage or f"unreadable:\n{type(error).__name__}"]
    _draw(rows, 5, (*MODALITIES, "labels"), target)


def read_slices(source: Source) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Modalities and labels ``(H, W)`` of the middle tumor slice; every fourth file is looked at to find it.

    Transposed, so that the forehead is at the top and the patient's right on the left.
    """
    import h5py

    def read(z: int, name: str) -> np.ndarray:
        with h5py.File(source.files[z]) as file:
            return np.asarray(file[name]).T

    order = sorted(source.files)
    tumor = [z for z in order[::4] if read(z, "mask").any()]
    z = tumor[len(tumor) // 2] if tumor else order[len(order) // 2]
    return list(read(z, "image")), [read(z, "mask")[channel] for _, channel, _ in LABELS]


def read_scan(source: Source) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The same for NIfTI files, from the slice in the middle of the labels."""
    import nibabel

    volumes = {kind: np.asarray(nibabel.load(path).dataobj).T for kind, path in source.files.items()}
    labels = volumes["seg"]
    slices = np.flatnonzero(labels.any((1, 2)))
    z = slices[len(slices) // 2] if len(slices) else len(labels) // 2
    images = [volumes[kind][z] for kind in ("flair", "t1", "t1ce", "t2")]
    return images, [labels[z] == value for value, _, _ in LABELS]


def _draw(rows: Mapping[str, list], columns: int, titles: tuple[str, ...] | None, target: Path) -> None:
    """Write a sheet: an image, an (image, masks) pair or a text in each cell, the name of the row at its left."""
    from matplotlib.figure import Figure

    figure = Figure((1.3 * columns + 0.4, 1.35 * len(rows) + 0.2), facecolor="white", layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, (label, cells) in zip(grid, rows.items(), strict=True):
        axes[0].set_ylabel(label, fontsize=8)
        for column, ax in enumerate(axes):
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if titles and ax in grid[0]:
                ax.set_title(titles[column], fontsize=9)
            cell = cells[column] if column < len(cells) else "" if cells else "no files"
            if isinstance(cell, str):
                ax.text(0.5, 0.5, cell, ha="center", va="center", fontsize=7, transform=ax.transAxes)
                continue
            image, masks = cell if isinstance(cell, tuple) else (cell, [])
            ax.imshow(image, cmap="gray")
            for mask, (_, _, color) in zip(masks, LABELS, strict=False):
                if mask.any():
                    ax.contour(mask, [0.5], colors=[color], linewidths=0.8)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=110)
