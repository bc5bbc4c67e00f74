"""The only reader and writer of recorded runs: ``<results>/<chapter>/<run>.json``, weights and figures beside it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load, save
from scipy.special import softmax
from torch import nn

import brainlib
from brainlib.evaluate import Interval, Predictions
from brainlib.files import DataError, atomic_path, data_root, write_text
from brainlib.models import create_model
from brainlib.pictures import MIN_ALT, to_image, to_page, to_webp

try:
    import resource
except ImportError:  # Windows
    resource = None

_SOURCE_TREE = Path(__file__).parents[1] / "book" / "results"
_INSTALLED = Path(__file__).parent / "records"

OPTIONAL = {"figures", "tables", "predictions", "weights_sha256"}  # keys that records of the first chapters lack
MAX_FIGURE_WIDTH = 1400  # pixels
MAX_FIGURE_BYTES = 400_000  # of a file in the book
MAX_SHOWN_BYTES = 150_000  # of a picture in a notebook
FIGURE_DPI = 200
PAGE_DPI = 110  # that of a figure which a cell draws: both are as large on the page


@dataclass
class Record:
    """One recorded run, as its JSON file has it.

    Attributes:
        model: a name of `brainlib.models.list_models`; ``"several"`` of a comparison, ``"none"`` where nothing was
            trained.
        data: ``name``, ``fingerprint``, ``split`` (the protocol), and the number of items in ``train``, ``validation``
            (0 where there was none) and ``test``.
        settings: everything that was chosen, hyperparameters first.
        metrics: name to value and the ends of its 95 % interval.
        seconds: time spent training, summed over seeds.
        peak_memory_bytes: on a GPU the largest memory of the training; on the CPU the largest that the process had
            needed so far, other trainings before it included.
        figures: name to alt text of the pictures saved beside the record; `show_figure` shows one.
        tables: name to whatever JSON holds, such as a list of rows.
        predictions: names of the predictions saved beside the record; `load_predictions` reads them.
        weights_sha256: digest of the file of weights saved with the record, empty without one; None in older records.
    """

    chapter: str
    run: str
    model: str
    profile: str
    data: dict[str, Any]
    settings: dict[str, Any]
    seeds: list[int]
    metrics: dict[str, Interval]
    seconds: float
    hardware: str = field(default_factory=lambda: hardware())
    peak_memory_bytes: int = field(default_factory=lambda: peak_memory_bytes())
    brainlib: str = brainlib.__version__
    commit: str | None = field(default_factory=lambda: git_commit())
    figures: dict[str, str] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    predictions: list[str] = field(default_factory=list)
    weights_sha256: str | None = None
    folder: ClassVar[Path | None] = None  # where it was saved to or loaded from

    def __post_init__(self) -> None:
        missing = {"name", "fingerprint", "split", "train", "validation", "test"} - set(self.data)
        if missing:
            raise DataError(f"record {self.chapter}/{self.run}: data lacks {', '.join(sorted(missing))}")
        self.metrics = {name: Interval(*value) for name, value in self.metrics.items()}

    @property
    def name(self) -> str:
        """``chapter/run``, by which `load_model` and the command line know it."""
        return f"{self.chapter}/{self.run}"


def results_root() -> Path:
    """The folder of the records that came with the course: ``book/results`` in a source tree, else in the package."""
    return _SOURCE_TREE if _SOURCE_TREE.is_dir() else _INSTALLED


def _own_root() -> Path:
    """Where new records go: into the source tree, or beside the data where brainlib is only installed."""
    return _SOURCE_TREE if _SOURCE_TREE.is_dir() else data_root() / "results"


def _roots() -> list[Path]:
    """The folders of records, each once; those of the second go before those of the first."""
    return list(dict.fromkeys([results_root(), _own_root()]))


def save_record(
    record: Record,
    model: nn.Module | None = None,
    root: Path | None = None,
    *,
    figures: Mapping[str, tuple[Figure, str]] | None = None,
    predictions: Mapping[str, Predictions] | None = None,
) -> Path:
    """Write a record, and beside it ``model``'s weights in float16, its figures as WebP and its predictions.

    Returns the JSON file.

    Args:
        figures: name (lower-case letters, digits, hyphens) to a figure and its alt text of 40 characters or more. They
            become ``record.figures``; figures of an earlier run of this name are removed.
        predictions: name to `Predictions`, such as ``test`` and ``validation``, kept as logarithms in float16 (about
            three digits of the smallest probability as of the largest's distance from 1).

    Without ``model``, weights of an earlier run of this name stay on disk, and `load_model` refuses them; a record that
    was loaded, and is saved again, keeps those that it has.

    Raises:
        DataError: a name or alt text that cannot be used, a figure of more than 400 kB, or a value that JSON cannot
            hold; nothing is written then.
    """
    target = (root or _own_root()) / record.chapter / f"{record.run}.json"
    pictures = {name: _encode_figure(record, name, *value) for name, value in (figures or {}).items()}
    if figures is not None:
        record.figures = {name: alt for name, (_, alt) in figures.items()}
    if predictions is not None:
        record.predictions = list(predictions)
    weights = None if model is None else _encode_weights(model)
    if weights is not None:
        record.weights_sha256 = hashlib.sha256(weights).hexdigest()
    elif record.folder != target.parent:
        record.weights_sha256 = ""
    text = _encode(record)  # before the first file is written
    if weights is not None:
        _write_bytes(target.with_suffix(".safetensors"), weights)
    if predictions is not None:
        _write_predictions(_predictions_path(target.parent, record.run), predictions)
    for name, picture in pictures.items():
        _write_bytes(_figure_path(target.parent, record.run, name), picture)
    write_text(target, text)
    record.folder = target.parent
    kept = {_figure_path(target.parent, record.run, name) for name in record.figures}
    for path in target.parent.glob("[!.]*.webp"):
        if path.stem.rpartition(".")[0] == record.run and path not in kept:
            path.unlink(missing_ok=True)
    if not record.predictions:
        _predictions_path(target.parent, record.run).unlink(missing_ok=True)
    return target


def _encode(record: Record) -> str:
    """The JSON text of a record."""
    content = asdict(record)
    content["metrics"] = {name: value._asdict() for name, value in record.metrics.items()}
    if record.weights_sha256 is None:  # as the older record has it that was loaded
        del content["weights_sha256"]
    try:
        return json.dumps(_without_nan(content), indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the record {record.name} holds what JSON cannot ({error}): give it finite numbers, text, lists and dicts "
            "of Python alone"
        ) from error


def _encode_weights(model: nn.Module) -> bytes:
    """A safetensors file of the weights in float16."""
    return save(
        {
            name: (t.half() if t.is_floating_point() else t).detach().cpu().contiguous()
            for name, t in model.state_dict().items()
        }
    )


def _write_bytes(target: Path, content: bytes) -> None:
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def load_predictions(record: Record) -> dict[str, Predictions]:
    """The predictions that were saved with a record, by name, so that any metric can be computed anew.

    Raises:
        DataError: it has none, or their file is missing or damaged.
    """
    if not record.predictions or record.folder is None:
        raise DataError(f"{record.name} has no saved predictions: make the run again with the data")
    path = _predictions_path(record.folder, record.run)
    found = {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            for name in record.predictions:
                columns = {key: stored[f"{name}.{key}"] for key in ("logarithms", "labels", "groups", "networks")}
                logits = columns["logarithms"].astype(np.float64)
                networks = columns["networks"].astype(np.int64)
                found[name] = Predictions(
                    softmax(logits, axis=1),  # rounding has moved the sum a little from 1
                    columns["labels"].astype(np.int64),
                    columns["groups"].astype(np.int64),
                    networks if len(networks) else None,
                )
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: fetch it or make the run again") from error
    except Exception as error:  # of half a file or another kind of file, numpy and zipfile raise many kinds
        raise DataError(f"{path} is damaged ({error}): fetch it or make the run again") from error
    return found


def _write_predictions(path: Path, predictions: Mapping[str, Predictions]) -> None:
    columns: dict[str, np.ndarray] = {}
    for name, p in predictions.items():
        # As logarithms a probability near 0 keeps its digits, and one near 1 its distance from 1.
        logarithms = np.log(np.maximum(p.probabilities, 1e-300)).astype(np.float16)
        networks = np.empty(0, np.int8) if p.networks is None else p.networks.astype(np.int8)
        columns |= {f"{name}.logarithms": logarithms, f"{name}.labels": p.labels.astype(np.int8)}
        columns |= {f"{name}.groups": p.groups.astype(np.int32), f"{name}.networks": networks}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **columns)


def _predictions_path(folder: Path, run: str) -> Path:
    return folder / f"{run}.predictions.npz"


def _figure_path(folder: Path, run: str, name: str) -> Path:
    return folder / f"{run}.{name}.webp"


def _encode_figure(record: Record, name: str, figure: Figure, alt: str) -> bytes:
    """The WebP file of a figure, checked."""
    where = f"figure {name!r} of {record.name}"
    if not re.fullmatch(r"[a-z0-9-]+", name):
        raise DataError(f"{where}: a name has lower-case letters, digits and hyphens only")
    if len(alt.strip()) < MIN_ALT:
        raise DataError(f"{where}: the alt text has {len(alt.strip())} characters; describe it in {MIN_ALT} or more")
    image = to_image(figure, FIGURE_DPI, tight=True)
    image.thumbnail((MAX_FIGURE_WIDTH, image.height), Image.Resampling.LANCZOS)
    content = to_webp(image, quality=85)
    if len(content) > MAX_FIGURE_BYTES:
        raise DataError(
            f"{where} has {len(content) / 1e3:.0f} kB, more than {MAX_FIGURE_BYTES / 1e3:.0f} kB: show fewer pictures, "
            "or make it less high (the width is at most 1400 pixels whatever its inches)"
        )
    return content


def load_records(chapter: str, profile: str | None = "full", root: Path | None = None) -> list[Record]:
    """Recorded runs of a chapter, by name; your own run replaces one of the same name that came with the course.

    Raises:
        DataError: a file that is no record.
    """
    found: dict[str, Record] = {}
    for folder in [root] if root else _roots():
        for path in sorted((folder / chapter).glob("[!.]*.json")):  # what begins with a dot is being written
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                content["metrics"] = {name: _interval(v) for name, v in content["metrics"].items()}
                missing = {f.name for f in fields(Record)} - OPTIONAL - set(content)
                if missing:  # the defaults describe a run on this machine, not one that was read
                    raise KeyError(", ".join(sorted(missing)))
                record = Record(**content)
                record.folder = path.parent
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{path} is not a record of a run ({error}): delete it or make the run again"
                ) from error
            if profile is None or record.profile == profile:
                found[record.run] = record
    return [found[run] for run in sorted(found)]


def _without_nan(value: Any) -> Any:
    """What JSON can hold: an undefined number becomes null."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _interval(stored: Mapping[str, float | None]) -> Interval:
    return Interval(*(math.nan if stored[end] is None else stored[end] for end in ("value", "low", "high")))


class RecordedFigure:
    """What `show_figure` returns; shown as the last value of a cell, like a figure that the cell drew."""

    def __init__(self, title: str, alt: str, image: Image.Image) -> None:
        self.title, self.alt, self.image = title, alt, image

    def __repr__(self) -> str:
        return f"Figure {self.title}"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, str], dict[str, Any]]:
        mime, content = to_page(self.image, MAX_SHOWN_BYTES)
        look = {"alt": self.alt, "width": round(self.image.width * PAGE_DPI / FIGURE_DPI)}
        return {mime: base64.b64encode(content).decode("ascii"), "text/plain": repr(self)}, {mime: look}


def show_figure(record: Record, name: str) -> RecordedFigure:
    """A figure that was saved with a record, for the last line of a cell.

    The site takes caption, label and alt text from the cell's metadata, as for any figure.

    Raises:
        DataError: the record has no such figure, or its file is missing or damaged.
    """
    if name not in record.figures:
        known = ", ".join(sorted(record.figures)) or "none"
        raise DataError(f"{record.name} has no figure {name!r}; it has: {known}")
    if record.folder is None:
        raise DataError(f"{record.name} was neither saved nor loaded, so its figures are nowhere: save_record it first")
    path = _figure_path(record.folder, record.run, name)
    try:
        with Image.open(path) as file:
            return RecordedFigure(f"{name} of {record.name}", record.figures[name], file.convert("RGB"))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: fetch it or make the run again") from error
    except OSError as error:
        raise DataError(f"{path} is no picture ({error}): fetch it or make the run again") from error


def study_results(model: str) -> dict[str, float]:
    """What the original study reports for a model (``study.json``): measured by its authors, not by this course."""
    reported = json.loads((results_root() / "study.json").read_text(encoding="utf-8"))
    if model not in reported:
        raise DataError(f"the study reports nothing for {model!r}; it reports on: {', '.join(sorted(reported))}")
    return reported[model]


def list_weights() -> list[str]:
    """Names ``chapter/run`` of the recorded runs whose weights were saved."""
    return sorted(_weights())


def find_record(name: str) -> Record | None:
    """The record ``chapter/run`` of any profile, None if there is none."""
    chapter, run = name.rsplit("/", 1)
    return next((record for record in load_records(chapter, profile=None) if record.run == run), None)


def weights_file(name: str) -> Path:
    """The file of the weights ``chapter/run``.

    Raises:
        DataError: no such weights; the message lists those that exist.
    """
    files = _weights()
    if name not in files:
        known = ", ".join(sorted(files)) or "none yet"
        raise DataError(f"no recorded weights are called {name!r}; there are: {known}")
    return files[name]


def weights_problem(name: str) -> str:
    """Why the weights ``chapter/run`` are not those of their record, in words; empty if they are."""
    record = find_record(name)
    if record is None:
        return f"has no record beside it ({name}.json): fetch or make it again"
    if record.weights_sha256 not in (None, hashlib.sha256(weights_file(name).read_bytes()).hexdigest()):
        return (
            f"holds weights of another run than the record {name}: fetch both, or make the run again and "
            "save its weights ('brainlib train --weights')"
        )
    return ""


def load_model(name: str) -> nn.Module:
    """The model of a recorded run, with its weights, in evaluation mode.

    Args:
        name: ``chapter/run``, one of `list_weights`.

    Raises:
        DataError: no such weights, a damaged file, or one of another run than the record.
    """
    path = weights_file(name)
    record = find_record(name)
    if problem := weights_problem(name):
        raise DataError(f"{path} {problem}")
    content = path.read_bytes()
    model = create_model(record.model, **record.settings.get("arguments", {}))
    try:
        model.load_state_dict(load(content))
    except Exception as error:  # safetensors and load_state_dict raise several kinds
        raise DataError(f"{path} does not fit {record.model} ({error}): fetch or make it again") from error
    return model.eval()


def _weights() -> dict[str, Path]:
    return {
        path.relative_to(root).with_suffix("").as_posix(): path
        for root in _roots()
        for path in root.glob("*/[!.]*.safetensors")
    }


def hardware() -> str:
    """The device that trains here, in words: GPU name, or processor and number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name") or platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def reset_peak_memory() -> None:
    """Begin anew to measure the memory of the GPU; that of a process cannot be."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes() -> int:
    """Largest memory since `reset_peak_memory`: of the GPU's allocator; without a GPU of this process since it began.

    0 on Windows without a GPU.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes


def git_commit() -> str | None:
    """Commit of the source tree that runs, None where there is none, or no git to ask."""
    if not _SOURCE_TREE.is_dir():
        return None
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=_SOURCE_TREE, capture_output=True, text=True)
    except OSError:
        return None
    return answer.stdout.strip() or None
