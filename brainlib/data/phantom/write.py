"""A phantom set on disk: made once, by several processes, in the layouts of the two Kaggle data sets.

While it is being made the set lies in a hidden folder beside its place, one finished patient at a time; when it is
whole, the folder is renamed into place. So a set that can be seen is complete, and an interrupted run goes on where
it stopped.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from tqdm import tqdm

from ...files import DataError, atomic_path, data_root, exclusive, explain, sync_file, write_text
from ..mri import CLASSES
from .cohort import examine, patients, survival, volume
from .settings import PhantomSettings

MRI = "brain-tumor-mri"
BRATS = "brats2020/BraTS2020_training_data/content/data"
_MARK = "phantom.json"
_STATE = ".state"  # inside the hidden folder: one file per finished patient


class _Stopped(DataError):
    """A worker ended early for another reason than the disk: what is done stays, for the next call to go on with."""


def make_phantom(
    root: str | os.PathLike[str] | None = None,
    seed: int = 0,
    *,
    settings: PhantomSettings | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Make the phantom set, or find the one that is there.

    Args:
        root: its folder; by default ``phantom`` under :func:`brainlib.files.data_root`. Must be new, empty, or a
            phantom.
        seed: the same seed gives the same bytes on one machine, with any number of workers.
        settings: what the set holds; by default the demo set of the course (two minutes or so on two cores, once).
        workers: number of processes; by default one per core, at most 8.
        progress: show a plain-text bar on stderr.

    Returns:
        The folder, with

        - ``brain-tumor-mri/{Training,Testing}/{glioma,meningioma,notumor,pituitary}/*.jpg`` and ``slices.csv``
          (path, patient, site, plane, position_mm, tumor_px: the tumor's area in the slice, without edema);
        - ``brats2020/BraTS2020_training_data/content/data/volume_N_slice_Z.h5`` (``image`` (240, 240, 4) float64:
          FLAIR, T1, T1c, T2, each volume standardised over the brain pixels of its slices; ``mask`` (240, 240, 3)
          uint8: NCR, ED, ET) with ``meta_data.csv``, ``name_mapping.csv``, ``survival_info.csv``, and ``truth.csv``
          (what no real set has: the true volumes in ml, and survival without its noise);
        - ``phantom.json``: hash, seed, settings and summary. It is made again when the hash of code, settings and
          seed changes.

    Raises:
        DataError: the folder holds something else, cannot be written to, or the disk is full.
    """
    root = Path(root).expanduser() if root is not None else data_root() / "phantom"
    root = root.absolute()
    settings = settings or PhantomSettings()
    key = phantom_hash(seed, settings)
    if _hash_of(root) == key:
        return root
    _refuse_foreign(root)
    staging = root.parent / f".partial-{root.name}-{key[:12]}"
    with exclusive(root.parent / f".lock-{root.name}"):
        if _hash_of(root) == key:  # another process made it while we waited
            return root
        try:
            for other in root.parent.glob(f".partial-{root.name}-*"):
                if other != staging:
                    shutil.rmtree(other)
            (staging / _STATE).mkdir(parents=True, exist_ok=True)
            for claim in (staging / _STATE).glob("*.claim"):  # left by a run that was killed
                claim.unlink()
            _make(staging, seed, settings, workers or min(8, os.cpu_count() or 1), progress)
            _finish(staging, key, seed, settings)
            _replace(staging, root)
        except OSError as error:
            raise explain(error, root) from error
        except _Stopped:
            raise
        except DataError:
            shutil.rmtree(staging, ignore_errors=True)  # a full disk is not made better by half a phantom
            raise
    return root


def phantom_hash(seed: int, settings: PhantomSettings) -> str:
    """Hash of all that decides the bytes of a set: the source of this package, the settings and the seed."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    digest.update(json.dumps([seed, asdict(settings)]).encode())
    return digest.hexdigest()


def _hash_of(root: Path) -> str | None:
    """The hash of the complete set at ``root``; None if there is none."""
    try:
        return json.loads((root / _MARK).read_text(encoding="utf-8"))["hash"]
    except (OSError, ValueError, KeyError):
        return None


def _refuse_foreign(root: Path) -> None:
    """Never replace a folder that is not a phantom."""
    if root.exists() and not (root / _MARK).is_file():
        if not root.is_dir() or any(root.iterdir()):
            raise DataError(f"{root} exists and is not a phantom set: give root= a new or empty folder")


# ---- the work, patient by patient


def _units(seed: int, settings: PhantomSettings) -> list[str]:
    """Names of the pieces of work, the long ones first."""
    return [f"volume-{n}" for n in range(1, settings.volumes + 1)] + [p.id for p in patients(settings, seed)]


def work(staging: Path, seed: int, settings: PhantomSettings) -> Iterator[str]:
    """Make every patient that no other worker has claimed; yield the name of each that is done."""
    state = staging / _STATE
    cohort = {patient.id: patient for patient in patients(settings, seed)}
    for unit in _units(seed, settings):
        if (state / f"{unit}.json").exists():
            continue
        try:
            os.close(os.open(state / f"{unit}.claim", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        if unit in cohort:
            rows = _write_slices(staging / MRI, cohort[unit], settings, seed)
        else:
            rows = _write_volume(staging / BRATS, int(unit.split("-")[1]), settings, seed)
        write_text(state / f"{unit}.json", json.dumps(rows))
        yield unit


def _make(staging: Path, seed: int, settings: PhantomSettings, workers: int, progress: bool) -> None:
    """Run the work in this process, or in several, and show how far it is."""
    units = _units(seed, settings)
    state = staging / _STATE
    done = sum(1 for _ in state.glob("[!.]*.json"))
    workers = min(workers, len(units) - done)
    bar = tqdm(total=len(units), initial=done, desc="phantom", unit="patient", file=sys.stderr, disable=not progress)
    with bar:
        if workers <= 1:
            for _ in work(staging, seed, settings):
                bar.update()
            return
        # Plain child processes, not multiprocessing: a script that calls make_phantom needs no __main__ guard.
        command = [sys.executable, "-m", f"{__package__}.worker", str(staging), str(seed), json.dumps(asdict(settings))]
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        children = [
            subprocess.Popen(command, env={**os.environ, **threads}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for _ in range(workers)
        ]
        try:
            while any(child.poll() is None for child in children):
                if new := sum(1 for _ in state.glob("[!.]*.json")) - bar.n:
                    bar.update(new)
                if any(child.poll() for child in children):
                    break  # one failed: the others need not go on
                time.sleep(0.1)
        finally:
            for child in children:
                if child.poll() is None and any(c.poll() for c in children) or sys.exc_info()[0]:
                    child.terminate()
            messages = [child.communicate()[1].decode(errors="replace").strip() for child in children]
        for child, message in zip(children, messages, strict=True):
            if child.returncode == 3:  # the worker says what the user can mend
                raise DataError(message.splitlines()[-1])
            if child.returncode > 0:
                raise _Stopped(f"a phantom worker failed: {message}")
        if any(child.returncode for child in children):
            raise _Stopped("a phantom worker was stopped; call make_phantom again to go on")
        bar.update(sum(1 for _ in state.glob("[!.]*.json")) - bar.n)


def _write_slices(folder: Path, patient, settings: PhantomSettings, seed: int) -> list[dict]:
    rows = []
    for picture in examine(patient, settings, seed):
        with atomic_path(folder / picture.path, durable=False) as path:
            Image.fromarray(picture.image).save(path, quality=picture.quality)
        rows.append(
            {
                "path": picture.path,
                "patient": patient.id,
                "site": f"S{patient.site + 1}",
                "plane": picture.plane,
                "position_mm": round(picture.position_mm, 2),
                "tumor_px": picture.tumor_px,
            }
        )
    return rows


def _write_volume(folder: Path, number: int, settings: PhantomSettings, seed: int) -> dict:
    made = volume(number, settings, seed)
    images = np.empty(made.images.shape, np.float64)
    for channel in range(4):
        values = made.images[..., channel].astype(np.float64)
        brain = values[values > 0]
        # Steps of 1/128 of a standard deviation, far below the noise: short numbers compress four times better.
        images[..., channel] = np.rint((values - brain.mean()) / brain.std() * 128) / 128
    masks = np.stack([made.labels == value for value in (1, 2, 4)], -1).astype(np.uint8)
    for row, z in enumerate(settings.slices):
        # Built in memory: the HDF5 library does not survive a disk that fills up while it writes.
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            for name, data in (("image", images[row]), ("mask", masks[row])):
                file.create_dataset(
                    name, data=data, compression="gzip", compression_opts=4, shuffle=True, chunks=data.shape
                )
        with atomic_path(folder / f"volume_{number}_slice_{z}.h5", durable=False) as path:
            path.write_bytes(buffer.getbuffer())
    return {
        "number": number,
        "grade": made.grade,
        "site": made.site,
        "target": [int(mask.any()) for mask in masks],
        "truth": made.truth,
        **(survival(number, made.truth, settings, seed) if made.grade == "HGG" else {}),
    }


# ---- when all patients are there: tables, mark, rename


def _table(path: Path, columns: list[str], rows: list[list[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *rows])
    write_text(path, text.getvalue())


def _finish(staging: Path, key: str, seed: int, settings: PhantomSettings) -> None:
    """Write the tables and the mark, and drop the state of the work."""
    state = staging / _STATE
    results = {unit: json.loads((state / f"{unit}.json").read_text("utf-8")) for unit in _units(seed, settings)}
    slices = [row for unit, rows in results.items() if not unit.startswith("volume-") for row in rows]
    slices.sort(key=lambda row: row["path"])
    _table(staging / MRI / "slices.csv", list(slices[0]), [list(row.values()) for row in slices])

    volumes = [results[f"volume-{n}"] for n in range(1, settings.volumes + 1)]
    folder = staging / BRATS
    meta = [
        [f"/content/data/volume_{v['number']}_slice_{z}.h5", target, v["number"], z]
        for v in volumes
        for z, target in zip(settings.slices, v["target"], strict=True)
    ]
    _table(folder / "meta_data.csv", ["slice_path", "target", "volume", "slice"], meta)
    years = [f"BraTS_{year}_subject_ID" for year in (2017, 2018)] + ["TCGA_TCIA_subject_ID"]
    names = [[v["grade"], "NA", "NA", "NA", "NA", _brats_id(v)] for v in volumes]
    _table(folder / "name_mapping.csv", ["Grade", *years, "BraTS_2019_subject_ID", "BraTS_2020_subject_ID"], names)
    alive = [v for v in volumes if "days" in v]
    outcome = [[_brats_id(v), round(v["age"], 3), v["days"], v["resection"]] for v in alive]
    _table(folder / "survival_info.csv", ["Brats20ID", "Age", "Survival_days", "Extent_of_Resection"], outcome)
    truth_names = list(volumes[0]["truth"])
    truth = [
        [_brats_id(v), v["grade"], v["site"]]
        + [round(v["truth"][name], 3) for name in truth_names]
        + [round(v["expected_days"], 1) if "expected_days" in v else "NA"]
        for v in volumes
    ]
    _table(folder / "truth.csv", ["Brats20ID", "Grade", "Site", *truth_names, "expected_days"], truth)

    shutil.rmtree(state)
    for file in staging.rglob("*"):
        if file.is_file():
            sync_file(file)
    counts = {
        split: {c: len(list((staging / MRI / split / c).iterdir())) for c in CLASSES}
        for split in ("Training", "Testing")
    }
    summary = {
        "images": counts,
        "patients": settings.patients_per_class * len(CLASSES),
        "leak": round(settings.leak, 4),
        "volumes": settings.volumes,
        "volume_slices": len(meta),
        "bytes": sum(file.stat().st_size for file in staging.rglob("*") if file.is_file()),
    }
    mark = {"hash": key, "seed": seed, "settings": asdict(settings), "summary": summary}
    write_text(staging / _MARK, json.dumps(mark, indent=1) + "\n")


def _brats_id(row: dict) -> str:
    return f"BraTS20_Training_{row['number']:03d}"


def _replace(staging: Path, root: Path) -> None:
    """Put the finished folder into place; an older phantom steps aside first and is then removed."""
    if root.exists() and any(root.iterdir()):
        old = root.parent / f".partial-{root.name}-old"
        shutil.rmtree(old, ignore_errors=True)
        os.replace(root, old)
        os.replace(staging, root)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(staging, root)
