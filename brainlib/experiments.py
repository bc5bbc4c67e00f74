"""One classifier, one protocol, one seed: trained, tested and recorded. Chapters, command line and clusters call this.

For teaching and research, not a medical device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from brainlib.data.mri import MRIDataset
from brainlib.data.splits import group_split, patient_folds
from brainlib.distributed import Processes
from brainlib.evaluate import Predictions, predict, summarize
from brainlib.files import DataError, data_root
from brainlib.metrics import calibration_error, mean_confidence
from brainlib.recipes import RECIPES, Recipe, get_recipe
from brainlib.results import Record, load_records, peak_memory_bytes, reset_peak_memory
from brainlib.train import History, automatic_precision, fit, seed_everything

CHAPTER = "08_comparing_classifiers"
PROTOCOLS = ("study", "official", "grouped")
# Epochs outside the study's own protocol where fewer are enough: after 20, CustomCNN is right on 99 % of what it learns
# from and the compact transformer on 98 %.
COURSE_EPOCHS = {"custom_cnn": 20, "compact_transformer": 20}
# Here the schedule stays that of the recipe, and training stops on the way: AlexNet's best epoch by validation is the
# 20th of 50, and with the schedule compressed into 25 epochs it would never get that far.
STOPPED_EARLY = {"alexnet": 25}
HELD_OUT = 0.15  # of the training slices, by group, to choose the epoch with


@dataclass(frozen=True)
class Part:
    """Positions in a data set, int64: what one network learns from, chooses its epoch with, and is tested on."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass
class Trained:
    """What `train_classifier` made: one network for each part of the protocol.

    Attributes:
        test: predictions of the items that the protocol tests, each by the network that has not learned from it.
        validation: those of the items that chose the epochs; what temperature scaling may be fitted on. Under the
            study's protocol these are the tested items, and a temperature that is fitted on them proves nothing.
        precision: that of the training, as in `brainlib.train.fit`.
        peak_memory_bytes: see `Record`.
    """

    recipe: Recipe
    split: str
    seed: int
    epochs: int
    networks: list[nn.Module]
    histories: list[History]
    parts: list[Part]
    test: Predictions
    validation: Predictions
    precision: str
    peak_memory_bytes: int = field(default_factory=peak_memory_bytes)

    @property
    def seconds(self) -> float:
        """Time spent training."""
        return sum(sum(history.seconds) for history in self.histories)


def split_parts(data: MRIDataset, split: str) -> list[Part]:
    """The parts of a protocol.

    - ``"study"``: learn from Training, validate and test on Testing, as the study did.
    - ``"official"``: 85 % of Training, by group, to learn from, the rest to choose the epoch with; tested on Testing.
      No slice is used for two things, but patients of Testing are known from Training.
    - ``"grouped"``: five folds with patients apart as far as they are known, both folders together. Each fold is tested
      by a network that learned from 85 % of the others and chose its epoch with the rest.

    Raises:
        DataError: no such protocol.
    """
    everything = np.arange(len(data))
    training, testing = (np.flatnonzero(data.splits == name) for name in ("Training", "Testing"))
    if split == "study":
        return [Part(training, testing, testing)]
    if split == "official":
        tests = [testing]
    elif split == "grouped":
        tests = list(patient_folds(data))
    else:
        raise DataError(f"split={split!r}: choose one of {', '.join(PROTOCOLS)}")
    parts = []
    for test in tests:
        learn = training if split == "official" else np.setdiff1d(everything, test)
        inner, held_out = group_split(data.groups[learn], (1 - HELD_OUT, HELD_OUT), 0, data.labels[learn])
        parts.append(Part(learn[inner], learn[held_out], test))
    return parts


def train_classifier(
    model: str | Recipe,
    data: MRIDataset,
    split: str = "official",
    seed: int = 0,
    *,
    epochs: int | None = None,
    parts: Sequence[Part] | None = None,
    checkpoints: Path | None = None,
    progress: bool = True,
) -> Trained:
    """Train one model under one protocol and test it.

    Args:
        model: a name with a recipe (`brainlib.recipes.RECIPES`), or a recipe of your own.
        split: ``"study"``, ``"official"`` or ``"grouped"``, see `split_parts`.
        epochs: `default_epochs` if None.
        parts: only these of the protocol's parts, or parts of your own.
        checkpoints: folder for one file a network, so that a run that dies goes on; None for none. A recipe or parts
            of your own have files of their own; a part of the protocol has the same file, alone or with the others.

    Raises:
        DataError: no such recipe or protocol, or a checkpoint of another run.
    """
    recipe = get_recipe(model) if isinstance(model, str) else model
    parts = split_parts(data, split) if parts is None else list(parts)
    epochs = epochs or default_epochs(recipe, split)
    stopped = split != "study" and epochs == STOPPED_EARLY.get(recipe.model)
    schedule = recipe.epochs if stopped else epochs
    files = _checkpoint_names(recipe, data, split, seed, epochs, parts) if checkpoints else []
    leaky = {"keep": "last", "overlap": "allow"} if split == "study" else {}
    networks, histories, tests, validations = [], [], [], []
    precision = automatic_precision()
    reset_peak_memory()
    for number, part in enumerate(parts, 1):
        name = f"{recipe.model}-{split}" + (f"-fold-{number}" if len(parts) > 1 else "")
        seed_everything(seed)
        network = recipe.make_model()
        optimizer = recipe.make_optimizer(network)
        history = fit(
            network,
            data.subset(part.train),
            data.subset(part.validation),
            loss=recipe.make_loss(),
            optimizer=optimizer,
            scheduler=recipe.make_scheduler(optimizer, schedule),
            epochs=epochs,
            batch_size=recipe.batch_size,
            augment=recipe.augment,
            seed=seed,
            precision=precision,
            checkpoint=checkpoints / files[number - 1] if checkpoints else None,
            label=f"{name}, seed {seed}",
            progress=progress,
            **leaky,
        )
        networks.append(network)
        histories.append(history)
        for index, found in ((part.test, tests), (part.validation, validations)):
            answers = predict(network, data.subset(index))
            found.append((index, replace(answers, networks=np.full(len(index), number - 1))))
    test = _join(tests) if len(tests) > 1 else tests[0][1]
    validation = _join(validations, sort=False) if len(tests) > 1 else validations[0][1]
    return Trained(recipe, split, seed, epochs, networks, histories, parts, test, validation, precision)


def default_epochs(recipe: Recipe, split: str) -> int:
    """The recipe's epochs, or those of `COURSE_EPOCHS` or `STOPPED_EARLY` outside the study's own protocol."""
    fewer = COURSE_EPOCHS | STOPPED_EARLY
    return recipe.epochs if split == "study" else min(recipe.epochs, fewer.get(recipe.model, recipe.epochs))


def _checkpoint_names(
    recipe: Recipe, data: MRIDataset, split: str, seed: int, epochs: int, parts: Sequence[Part]
) -> list[str]:
    """One file name a part; whatever changes a network changes the name."""
    name = f"{recipe.model}-{split}{recipe.mark(RECIPES.get(recipe.model))}"
    length = "" if epochs == default_epochs(recipe, split) else f"-{epochs}-epochs"
    protocol = split_parts(data, split) if split in PROTOCOLS else []
    names = []
    for part in parts:
        content = _content(part)
        number = next((i for i, fold in enumerate(protocol, 1) if _content(fold) == content), None)
        if number is None:
            which = f"-part-{_digest(content)}"
        else:
            which = f"-fold-{number}" if len(protocol) > 1 else ""
        names.append(f"{name}{which}-{seed}{length}.safetensors")
    return names


def _content(part: Part) -> bytes:
    return b"|".join(np.asarray(index, np.int64).tobytes() for index in (part.train, part.validation))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def _join(found: list[tuple[np.ndarray, Predictions]], sort: bool = True) -> Predictions:
    """Predictions of several networks as one; by position in the data set where each item has one prediction."""
    index = np.concatenate([positions for positions, _ in found])
    columns = (
        np.concatenate([getattr(answers, name) for _, answers in found])
        for name in ("probabilities", "labels", "groups", "networks")
    )
    joined = Predictions(*columns)
    return joined.subset(np.argsort(index, kind="stable")) if sort else joined


def describe(trained: Trained, data: MRIDataset, profile: str = "full") -> Record:
    """The record of a run, to be saved with `brainlib.results.save_record`."""
    parts = trained.parts
    recipe = trained.recipe
    usual = default_epochs(recipe, trained.split)
    last_batch = np.arange(len(trained.test))[-((len(trained.test) - 1) % recipe.batch_size + 1) :]
    last = trained.test.subset(last_batch)
    facts = {
        "name": data.name,
        "fingerprint": data.fingerprint,
        "split": trained.split,
        "train": round(np.mean([len(part.train) for part in parts])),
        "validation": 0 if trained.split == "study" else round(np.mean([len(part.validation) for part in parts])),
        "test": len(trained.test),
        "networks": len(parts),
    }
    settings = recipe.to_dict() | {
        "epochs": trained.epochs,
        "recipe_epochs": usual,
        "stopped_early": trained.epochs == usual < recipe.epochs and recipe.model in STOPPED_EARLY,
        "shortened": trained.epochs < usual,
        "precision": trained.precision,
        "processes": Processes.current().size,
        "kept_epochs": [history.best_epoch + 1 for history in trained.histories],
    }
    tables = {
        "histories": [{k: _shortened(v) for k, v in history.to_dict().items()} for history in trained.histories],
        "calibration_error": calibration_error(trained.test.probabilities, trained.test.labels),
        "confidence_last_batch": mean_confidence(last.probabilities),
        "train_score": float(np.mean([history.train_score[-1] for history in trained.histories])),
        "train_loss": float(np.mean([history.train_loss[-1] for history in trained.histories])),
    }
    run = f"{recipe.model}{recipe.mark(RECIPES.get(recipe.model))}-{trained.split}-{trained.seed}"
    if trained.epochs != usual:
        run += f"-{trained.epochs}-epochs"
    return Record(
        CHAPTER,
        run,
        recipe.model,
        profile,
        facts,
        settings,
        [trained.seed],
        summarize(trained.test, data.classes),
        trained.seconds,
        peak_memory_bytes=trained.peak_memory_bytes,
        tables=tables,
    )


def recorded_classifiers(split: str | None = None) -> dict[tuple[str, str, int], list[Record]]:
    """The recorded trainings by model, protocol and number of epochs; those of a group differ by seed alone.

    Args:
        split: one protocol; None for all. Trainings by a recipe of one's own are left out.

    Raises:
        DataError: no such protocol.
    """
    if split is not None and split not in PROTOCOLS:
        raise DataError(f"split={split!r}: choose one of {', '.join(PROTOCOLS)}")
    found: dict[tuple[str, str, int], list[Record]] = {}
    for record in load_records(CHAPTER):
        where = record.data["split"]
        if split in (None, where) and record.run.startswith(f"{record.model}-{where}-"):
            found.setdefault((record.model, where, record.settings["epochs"]), []).append(record)
    return {key: sorted(found[key], key=lambda record: record.seeds) for key in sorted(found)}


def is_usual(model: str, split: str, epochs: int) -> bool:
    """Whether a training is as long as the course's under that protocol (`default_epochs`)."""
    return epochs == default_epochs(get_recipe(model), split)


def _shortened(value: Any) -> Any:
    """Five digits of each number in a list, however small it is: a learning rate, or the loss of what is learned."""
    return [float(f"{x:.5g}") for x in value] if isinstance(value, list) else value


def checkpoint_folder() -> Path:
    """Where full runs of classifiers keep their checkpoints."""
    return data_root() / "runs" / CHAPTER
