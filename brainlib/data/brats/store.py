"""The store: each patient converted once into one file that memory-maps.

A patient is an array uint8 ``(Z, 5, H, W)`` in a plain ``.npy`` file (four channels, then the labels, so that a slice
is one piece of the disk) and a ``.json`` file with what was measured on the way, written last: a patient with both is
complete. Their names carry a hash of the source files' names, sizes and times, so a changed patient is converted again
and the others are not, and a conversion that was killed goes on where it stopped.

Brightness is ``value = byte * scale`` with one scale per volume and channel, counted from the background: the 99.9th
percentile of the brain becomes 255 and what is brighter is clipped; the background is exactly 0, the brain 1 to 255.

Space: rows above and below the brain are never written. Where the file system knows sparse files they take no room,
and a patient takes about 20 MB of the 45 MB that its file seems to have.

Memory: a process holds one patient at a time, about 250 MB over what Python and its libraries take, however many
patients there are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from brainlib.files import DataError, atomic_path, data_root, exclusive, write_text

from .layout import MODALITIES, Source
from .physics import identify
from .read import SHAPE, Damage, read_patient
from .transform import LABELS

VERSION = 3  # raise it when the bytes that `convert` writes would change
PERCENTILE = 99.9


@dataclass(frozen=True)
class Options:
    """What decides the bytes of the store beside the files."""

    shape: tuple[int, int, int] = SHAPE
    channels: tuple[str, ...] = MODALITIES
    label_3: str | None = None


def store_folder(root: Path, options: Options) -> Path:
    """The folder of the store for the set at ``root``."""
    key = hashlib.sha256(repr((VERSION, PERCENTILE, str(root), options)).encode()).hexdigest()[:16]
    return data_root() / "cache" / f"brats-{key}"


def quantize(values: np.ndarray) -> tuple[np.ndarray, float]:
    """float32 with background 0 to uint8, and the value of one step. Raises `Damage` if there is no brain."""
    inside = values != 0
    if not inside.any():
        raise Damage("no brain: every voxel is background")
    top = float(np.percentile(values[inside], PERCENTILE))
    if top <= 0:
        raise Damage("no brain: nothing is brighter than the background")
    scaled = np.rint(values * np.float32(255 / top))
    return np.clip(scaled, 1, 255, out=scaled).astype(np.uint8) * inside, top / 255


def convert(source: Source, target: Path, options: Options) -> dict:
    """Convert one patient to ``target`` (.npy, with .json beside it) and return what was measured, as in the .json.

    Raises:
        Damage: the patient cannot be used.
        DataError: the disk is full or cannot be written to.
    """
    raw = read_patient(source, options.shape, options.channels, options.label_3)
    records = np.empty((len(raw.z), 5, *options.shape[:2]), np.uint8)
    scale, mean, std = [], [], []
    for channel, values in enumerate(raw.channels):
        try:
            records[:, channel], step = quantize(values)
        except Damage as damage:
            raise Damage(f"{MODALITIES[channel]}: {damage}") from None
        counts = np.bincount(records[:, channel].ravel(), minlength=256)
        counts[0] = 0
        levels = np.arange(256)
        mean.append(float(np.average(levels, weights=counts)))
        std.append(float(np.average((levels - mean[-1]) ** 2, weights=counts) ** 0.5))
        scale.append(step)
        del values
    records[:, 4] = raw.labels
    notes = source.notes + raw.notes + _coverage(records[:, :4])
    facts = {
        "z": raw.z,
        "scale": scale,
        "mean": mean,
        "std": std,
        "voxels": [[int((labels == value).sum()) for value in LABELS.values()] for labels in raw.labels],
        "physics": asdict(identify(records[:, :4], raw.labels)),
        "sha256": hashlib.sha256(records).hexdigest(),
        "notes": notes,
    }
    _write_sparse(target, records)
    write_text(target.with_suffix(".json"), json.dumps(facts))
    return facts


def _coverage(images: np.ndarray) -> list[str]:
    """A note for each channel that misses more than a tenth of the brain that the others show."""
    brain = np.count_nonzero(images.any(1))
    shares = [np.count_nonzero(images[:, channel]) / brain for channel in range(4)]
    return [f"{n} covers {s:.0%} of the brain only" for n, s in zip(MODALITIES, shares, strict=True) if s < 0.9]


def _write_sparse(target: Path, records: np.ndarray) -> None:
    """Write a .npy file and leave out rows that are empty in all channels of a slice."""
    filled = records.any(axis=(1, 3))
    with atomic_path(target) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(records))
        start = file.tell()
        for row, (slice_, rows) in enumerate(zip(records, filled, strict=True)):
            if rows.any():
                first, last = np.flatnonzero(rows)[[0, -1]]
                for channel, picture in enumerate(slice_):
                    file.seek(start + (row * 5 + channel) * picture.size + first * picture.shape[1])
                    file.write(np.ascontiguousarray(picture[first : last + 1]))
        file.truncate(start + records.nbytes)


def read_facts(target: Path, height: int, width: int) -> dict | None:
    """The facts of a converted patient; None where it is absent, cut short or damaged: it is then converted again."""
    try:
        facts = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
        return facts if target.stat().st_size >= len(facts["z"]) * 5 * height * width else None
    except (OSError, ValueError, KeyError):
        return None


def fill(
    folder: Path, sources: list[Source], options: Options, workers: int | None, progress: bool
) -> tuple[dict[str, tuple[Path, dict]], dict[str, str]]:
    """Convert what is not converted yet.

    Returns:
        For each good patient the path of its file and its facts, and for each damaged one the reason.
    """
    targets = {source.id: folder / f"{source.id}-{source.key()}.npy" for source in sources}
    damaged = {source.id: source.damage for source in sources if source.damage}
    facts: dict[str, dict] = {}

    def look() -> list[Source]:
        open_ = [source for source in sources if source.id not in damaged and source.id not in facts]
        for source in open_:
            if (found := read_facts(targets[source.id], *options.shape[:2])) is not None:
                facts[source.id] = found
        return [source for source in open_ if source.id not in facts]

    if look():
        with exclusive(folder / ".lock"):
            jobs = look()  # another process may have done it while we waited
            _remove_strangers(folder, set(targets.values()))
            workers = max(1, min(workers or min(os.cpu_count() or 1, 8), -(-len(jobs) // 2)))
            bar = tqdm(
                total=len(sources) - len(damaged),
                initial=len(facts),
                desc="converting",
                unit="patient",
                disable=not progress,
                file=sys.stdout,
                leave=False,
                ncols=80,
            )
            with bar:
                for id, answer in _convert_all(jobs, targets, options, workers):
                    if isinstance(answer, dict):
                        facts[id] = answer
                    else:
                        damaged[id] = answer
                    bar.update()
    return {source.id: (targets[source.id], facts[source.id]) for source in sources if source.id in facts}, damaged


def _remove_strangers(folder: Path, targets: set[Path]) -> None:
    """Remove what a killed conversion left behind, and patients whose files have changed or are gone."""
    keep = {path.stem for path in targets}
    for path in folder.iterdir():
        if path.suffix in (".npy", ".json") and path.stem not in keep:
            path.unlink(missing_ok=True)


# ---- the work, in this process or in several


def attempt(source: Source, target: Path, options: Options) -> dict | str:
    """Facts, or the reason for which the patient cannot be used."""
    try:
        return convert(source, target, options)
    except Damage as damage:
        return str(damage)


def _convert_all(
    jobs: list[Source], targets: dict[str, Path], options: Options, workers: int
) -> Iterator[tuple[str, dict | str]]:
    if workers == 1:
        for source in jobs:
            yield source.id, attempt(source, targets[source.id], options)
        return
    stop = threading.Event()
    queue, lock = iter(jobs), threading.Lock()
    answers: list[tuple[str, dict | str]] = []

    def take() -> Source | None:
        with lock:
            return None if stop.is_set() else next(queue, None)

    with ThreadPoolExecutor(workers) as pool:
        threads = [pool.submit(_drive, take, targets, options, answers.append) for _ in range(workers)]
        waiting = set(threads)
        try:
            while waiting:
                done = {thread for thread in waiting if thread.done()}
                waiting -= done
                while answers:
                    yield answers.pop(0)
                for thread in done:
                    thread.result()
                stop.wait(0.05)
        finally:
            stop.set()


def _drive(take: Callable, targets: dict[str, Path], options: Options, answer: Callable) -> None:
    """Feed one child process with patients, a line of JSON each way. It ends when its input does, so it cannot outlive
    this process; a plain child needs no ``__main__`` guard in the user's script, as multiprocessing would."""
    command = [sys.executable, "-m", f"{__package__}.worker"]
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    child = subprocess.Popen(
        command, env={**os.environ, **threads}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        while (source := take()) is not None:
            try:
                job = {"source": asdict(source), "target": str(targets[source.id]), "options": asdict(options)}
                child.stdin.write(json.dumps(job) + "\n")
                child.stdin.flush()
                line = child.stdout.readline()
            except BrokenPipeError:
                line = ""
            if not line:
                raise DataError(
                    f"the process that read {source.id} was stopped (exit status {child.wait()}); it may have run out "
                    "of memory: load again with workers=1. What is converted stays."
                )
            reply = json.loads(line)
            if "error" in reply:
                raise DataError(reply["error"])
            answer((source.id, reply["answer"]))
    finally:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        if child.poll() is None and sys.exc_info()[0]:
            child.kill()
        child.wait()
        child.stdout.close()
