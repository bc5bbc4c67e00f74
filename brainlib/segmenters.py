"""One segmenter, one protocol, one seed: trained, tested on whole patients and recorded.

For teaching and research, not a medical device.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, LRScheduler

from brainlib.data.augment_masks import SegmentationAugment
from brainlib.data.brats import BraTSDataset, BraTSSlices, SegmentationData, region_masks
from brainlib.distributed import Processes, is_main_process
from brainlib.evaluate import Interval
from brainlib.files import DataError, data_root
from brainlib.losses import BCE, BatchDice, DeepSupervision, DiceBCE, SoftDice
from brainlib.models import count_parameters
from brainlib.modes import evaluating, exact_float32
from brainlib.recipes import BaseRecipe, WarmCosine
from brainlib.results import Record, load_records, peak_memory_bytes, reset_peak_memory
from brainlib.segmentation import WORST_DISTANCE, Counts, label_map, score_volume, slice_dice
from brainlib.train import History, automatic_precision, fit, prepare_batch, seed_everything

CHAPTER = "14_comparing_segmenters"
PROTOCOLS = ("study", "patient")
HABITS = ("own", "course")
#: The study's slices: the middle half of a volume.
MIDDLE = range(39, 116)
WHOLE = range(155)
#: Slices of a batch over which the study adds up its counts.
POOLED = 32
#: Regions that every record scores.
SCORED = ("WT", "TC", "ET", "NCR", "ED")
LOSSES: dict[str, Callable[[], nn.Module]] = {
    "bce": BCE,
    "soft_dice": SoftDice,
    "batch_dice": BatchDice,
    "dice_bce": DiceBCE,
    "batch_dice_bce": lambda: DiceBCE(BatchDice()),
}


@dataclass(frozen=True)
class SegmenterRecipe(BaseRecipe):
    """Everything that is chosen before a training starts, except the patients and the seed.

    Attributes:
        model: a name of `brainlib.models.list_models`.
        source: ``"study"`` or ``"course"``: whose choice this is.
        epochs: passes over the slices, or draws of as many.
        schedule: ``"decay"``, times 0.9 after every epoch; ``"cosine"``, two epochs of warm-up and half a cosine.
        loss: a name in `LOSSES`; on several sizes where the model gives several.
        regions, normalize, neighbors, crop, foreground, draws: see `SegmentationData`.
        z: ``"middle"``, the study's slices, or ``"whole"``, those of the whole volume: what is learned from. A patient
            is always tested on the whole volume.
        augment: on the training device, None for none.
        arguments: of the model.
    """

    model: str
    source: str
    epochs: int
    learning_rate: float
    weight_decay: float = 0.0
    optimizer: str = "Adam"
    schedule: str = "decay"
    loss: str = "bce"
    regions: tuple[str, ...] = ("NCR", "ED", "ET")
    normalize: str = "min_max"
    neighbors: int = 0
    crop: tuple[int, int] | None = None
    foreground: float | None = None
    draws: int | None = None
    z: str = "middle"
    augment: SegmentationAugment | None = None
    batch_size: int = 32
    arguments: dict[str, Any] = field(default_factory=dict)

    def mark(self, usual: BaseRecipe | None = None) -> str:
        """As for any recipe; ``-course`` for a network of the study that is trained by the course's habits."""
        usual = usual or SEGMENTER_RECIPES.get(self.model)
        if self != usual and self.model in SEGMENTER_RECIPES and self == get_segmenter_recipe(self.model, "course"):
            return "-course"
        return super().mark(usual)

    def make_loss(self) -> nn.Module:
        """The loss of logits, or of a list of them, and masks."""
        if self.loss not in LOSSES:
            raise DataError(f"loss={self.loss!r}: choose from {', '.join(LOSSES)}")
        return DeepSupervision(LOSSES[self.loss]())

    def make_scheduler(self, optimizer: Optimizer, epochs: int | None = None) -> LRScheduler:
        """The schedule, compressed or stretched alike when ``epochs`` is not the recipe's."""
        epochs = epochs or self.epochs
        if self.schedule == "decay":
            return ExponentialLR(optimizer, 0.9 ** (self.epochs / epochs))
        return LambdaLR(optimizer, WarmCosine(epochs))

    def make_data(self, slices: BraTSSlices, training: bool = False) -> SegmentationData:
        """The slices as the model takes them; while ``training`` with the recipe's draws."""
        draws = {"foreground": self.foreground, "draws": self.draws} if training else {}
        return SegmentationData(slices, self.regions, self.normalize, self.neighbors, self.crop, **draws)


def _study(model: str, epochs: int) -> SegmenterRecipe:
    return SegmenterRecipe(model, "study", epochs, 2e-3, 1e-2, arguments={"n_filters": 16})


SEGMENTER_RECIPES: dict[str, SegmenterRecipe] = {
    recipe.model: recipe
    for recipe in (
        _study("classic_unet", 20),
        _study("improved_unet", 20),
        _study("attention_unet", 20),
        SegmenterRecipe(
            "compact_unet",
            "course",
            30,
            2e-3,
            1e-2,
            optimizer="AdamW",
            schedule="cosine",
            loss="batch_dice_bce",
            regions=("WT", "TC", "ET"),
            normalize="standardize",
            neighbors=1,
            crop=(160, 192),
            foreground=0.5,
            draws=1848,
            z="whole",
            augment=SegmentationAugment(),
            batch_size=16,
            arguments={"in_channels": 12},
        ),
    )
}


def get_segmenter_recipe(model: str, habits: str = "own") -> SegmenterRecipe:
    """The recipe of a segmenter.

    Args:
        habits: ``"own"``: as in `SEGMENTER_RECIPES`. ``"course"``: everything but the network as for CompactUNet, so
            that two such runs differ in nothing but the network.

    Raises:
        DataError: no recipe has that name, or no such habits; the message lists those that exist.
    """
    if model not in SEGMENTER_RECIPES:
        known = ", ".join(SEGMENTER_RECIPES)
        raise DataError(f"there is no recipe for {model!r}; there are recipes for: {known}")
    if habits not in HABITS:
        raise DataError(f"habits={habits!r}: choose from {', '.join(HABITS)}")
    own = SEGMENTER_RECIPES[model]
    if habits == "own":
        return own
    compact = SEGMENTER_RECIPES["compact_unet"]
    return replace(compact, model=model, arguments=own.arguments | compact.arguments)


# ---- who is learned from, and who is tested


def split_patients(
    dataset: BraTSDataset, parts: Sequence[float] = (24, 4, 6), seed: int = 0
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Ids of the patients to learn from, to choose with and to test on.

    The 34 patients of the course's records have their parts in ``data/tables/patients.csv``. If all patients are of
    these, the file decides. Any other set is divided in the proportion of ``parts``, stratified by grade and volume of
    the tumor: patients are sorted by both and cut into as many strata as the smaller parts have members; chance takes
    one from each stratum.

    Raises:
        DataError: too few patients.
    """
    known = _known_parts()
    if dataset.name != "phantom" and set(dataset.ids) <= set(known):
        found = tuple(tuple(id for id in dataset.ids if known[id] == part) for part in ("train", "validation", "test"))
        if all(found):
            return found
    return stratify(dataset.table(), parts, seed)


def stratify(
    table: Sequence[dict[str, Any]], parts: Sequence[float] = (24, 4, 6), seed: int = 0
) -> tuple[tuple[str, ...], ...]:
    """Divide the rows of `BraTSDataset.table` as `split_patients` says; ids of each part, sorted."""
    shares = np.asarray(parts, float) / np.sum(parts)
    counts = [max(1, round(share * len(table))) for share in shares[1:]]
    if len(table) < sum(counts) + 1:
        raise DataError(f"{len(table)} patient(s) cannot be divided into {len(shares)} parts")
    left = sorted(table, key=lambda row: (row["grade"] or "", sum(row[f"{name}_ml"] for name in ("NCR", "ED", "ET"))))
    left = [row["id"] for row in left]
    rng = np.random.default_rng(seed)
    chosen = {}
    for part in (2, 1):  # the test patients first, from strata of everybody
        picked = [stratum[rng.integers(len(stratum))] for stratum in np.array_split(left, counts[part - 1])]
        chosen[part] = tuple(sorted(map(str, picked)))
        left = [id for id in left if id not in chosen[part]]
    return tuple(sorted(left)), chosen[1], chosen[2]


def _known_parts() -> dict[str, str]:
    text = files("brainlib.data").joinpath("tables/patients.csv").read_text(encoding="utf-8")
    return {row["id"]: row["part"] for row in csv.DictReader(text.splitlines())}


def split_slices(dataset: BraTSDataset, share: float = 0.2, seed: int = 0) -> tuple[BraTSSlices, BraTSSlices]:
    """The study's split: the middle slices of all patients, shuffled one by one; nearly every patient on both sides."""
    slices = dataset.slices(z=MIDDLE)
    order = np.random.default_rng(seed).permutation(len(slices))
    held_out = max(1, round(share * len(slices)))
    return slices.subset(np.sort(order[held_out:])), slices.subset(np.sort(order[:held_out]))


# ---- from a model to masks


def outline(
    model: nn.Module, data: SegmentationData, *, batch_size: int = 16, flips: bool = False, precision: str = "32-true"
) -> np.ndarray:
    """Probabilities of every pixel of every slice, float16 ``(N, R, H, W)``, in evaluation mode.

    Args:
        flips: average over the slice and its three mirrored versions (test-time augmentation).
        precision: as of `brainlib.evaluate.predict`.

    The model's mode and place are put back afterwards. A volume of 155 slices and three regions takes 54 MB.
    """
    fabric = Processes().fabric(precision)
    axes: list[tuple[int, ...]] = [(), (2,), (3,), (2, 3)] if flips else [()]
    found = []
    with evaluating(model, fabric.device), exact_float32(precision):
        wrapped = fabric.setup_module(model, move_to_device=False)
        with torch.inference_mode():
            for index in torch.arange(len(data)).split(batch_size):
                images, _ = prepare_batch(data, index, fabric.device)
                images = images.contiguous(memory_format=torch.channels_last)
                answers = [wrapped(images.flip(axis) if axis else images).float().sigmoid() for axis in axes]
                answers = [answer.flip(axis) if axis else answer for answer, axis in zip(answers, axes, strict=True)]
                mean = torch.stack(answers).mean(0).half().cpu().numpy()
                found.append(data.restore(mean, index.numpy()))
    return np.concatenate(found)


def convert_masks(masks: np.ndarray, regions: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Masks of some regions from masks of others, bool ``(..., R, H, W)``; what a model outlines itself stays."""
    rest = region_masks(label_map(masks, regions), tuple(wanted))
    own = list(regions)
    parts = [masks[..., own.index(r), :, :] if r in own else rest[..., i, :, :] for i, r in enumerate(wanted)]
    return np.stack(parts, -3)


# ---- a run


@dataclass
class TrainedSegmenter:
    """What `train_segmenter` made.

    Attributes:
        patients: ids of those learned from, chosen with and tested on; all three alike under the study's protocol.
        test: the slices that are tested: middle slices of all patients (study), whole volumes (patient).
        run: the name of its checkpoint and of its record.
        precision: that of the training, as in `brainlib.train.fit`.
        peak_memory_bytes: see `Record`.
    """

    recipe: SegmenterRecipe
    split: str
    seed: int
    epochs: int
    network: nn.Module
    history: History
    patients: tuple[tuple[str, ...], ...]
    train: SegmentationData
    test: SegmentationData
    run: str
    precision: str
    peak_memory_bytes: int = field(default_factory=peak_memory_bytes)

    @property
    def seconds(self) -> float:
        """Time spent training."""
        return sum(self.history.seconds)


def train_segmenter(
    model: str | SegmenterRecipe,
    dataset: BraTSDataset,
    split: str = "patient",
    seed: int = 0,
    *,
    epochs: int | None = None,
    patients: tuple[Sequence[str], Sequence[str], Sequence[str]] | None = None,
    checkpoints: Path | None = None,
    progress: bool = True,
) -> TrainedSegmenter:
    """Train one model under one protocol; the weights of the last epoch are kept, as in the study.

    Args:
        model: a name with a recipe (`SEGMENTER_RECIPES`), or a recipe of your own.
        split: ``"patient"``: patients apart, see `split_patients`. ``"study"``: slices apart, see `split_slices`.
        epochs: the recipe's if None.
        patients: ids to learn from, to validate with and to test on, in place of `split_patients`. The name of the run
            then says so.
        checkpoints: folder for the run's file, so that a run that dies goes on; None for none.

    The scores in the history are `slice_dice`, which takes a slice without tumor for right when nothing is outlined: a
    network that never outlines anything scores the share of empty masks. A warning tells of one that ends so.

    Raises:
        DataError: no such recipe or protocol, a patient in two parts, or a checkpoint of another run.
    """
    recipe = get_segmenter_recipe(model) if isinstance(model, str) else model
    epochs = epochs or recipe.epochs
    overlap = "refuse"
    if split == "study":
        learn, held_out = split_slices(dataset)
        train, validation = recipe.make_data(learn, training=True), recipe.make_data(held_out)
        test, overlap, parts = validation, "allow", (dataset.ids,) * 3
    elif split == "patient":
        parts = tuple(map(tuple, split_patients(dataset) if patients is None else patients))
        z = MIDDLE if recipe.z == "middle" else WHOLE
        train = recipe.make_data(dataset.slices(parts[0], z=z), training=True)
        validation = recipe.make_data(dataset.slices(parts[1], z=MIDDLE))
        test = recipe.make_data(dataset.slices(parts[2], z=WHOLE))
        if tested := set(parts[2]) & {*parts[0], *parts[1]}:
            raise DataError(f"{min(tested)} would be learned from, or chosen with, and tested: keep the parts apart")
    else:
        raise DataError(f"split={split!r}: choose one of {', '.join(PROTOCOLS)}")
    run = _run_name(recipe, split, seed, epochs, patients if split == "patient" else None)
    precision = automatic_precision()
    reset_peak_memory()
    seed_everything(seed)
    network = recipe.make_model()
    optimizer = recipe.make_optimizer(network)
    history = fit(
        network,
        train,
        validation,
        loss=recipe.make_loss(),
        optimizer=optimizer,
        scheduler=recipe.make_scheduler(optimizer, epochs),
        epochs=epochs,
        batch_size=recipe.batch_size,
        augment=recipe.augment,
        score=slice_dice,
        keep="last",
        overlap=overlap,
        seed=seed,
        precision=precision,
        checkpoint=checkpoints / f"{run}.safetensors" if checkpoints else None,
        label=f"{recipe.model}-{split}, seed {seed}",
        progress=progress,
    )
    if is_main_process() and _outlines_nothing(network, validation):
        warnings.warn(
            f"{run} outlines nothing on the validation slices; its score there is that of slices without tumor",
            stacklevel=2,
        )
    return TrainedSegmenter(recipe, split, seed, epochs, network, history, parts, train, test, run, precision)


def _run_name(recipe: SegmenterRecipe, split: str, seed: int, epochs: int, patients: Any) -> str:
    """The name of a run: the fields of its recipe, the protocol, patients of one's own, seed and epochs.

    The data, the precision and the number of processes are not in it. They stand in the checkpoint, and `fit` refuses
    one in which they differ.
    """
    name = f"{recipe.model}{recipe.mark()}-{split}"
    if patients is not None:
        name += "-" + hashlib.sha256(json.dumps([list(part) for part in patients]).encode()).hexdigest()[:8]
    length = "" if epochs == recipe.epochs else f"-{epochs}-epochs"
    return f"{name}-{seed}{length}"


def _outlines_nothing(network: nn.Module, data: SegmentationData) -> bool:
    """Whether a network's masks are empty in all slices; of one that outlines something, few slices show it."""
    parts = -(-len(data) // 32)
    return not any((outline(network, data.subset(np.arange(i, len(data), parts))) > 0.5).any() for i in range(parts))


# ---- from a run to numbers


@dataclass
class SegmenterScores:
    """What `score_segmenter` measured.

    Attributes:
        patients: one row for each tested patient: ``id``, ``grade``, and for each region in `SCORED` ``ml_…``,
            ``predicted_ml_…``, ``dice_…`` and, where distances were measured, ``hd95_…`` (in mm), in lower case.
            Milliliters are those of the tested slices, 1 mm each: of the volume only where all of it is tested.
        counts: of the middle slices, channels NCR, ED and ET, in batches of `POOLED` as the study pooled them.
        reliability: for each region that the model outlines, bins of predicted probability: ``mean probability``,
            ``share of tumor``, ``pixels``; over pixels of the brain.
    """

    patients: list[dict[str, Any]]
    counts: Counts
    reliability: dict[str, list[list[float]]]


def score_segmenter(
    model: nn.Module, test: SegmentationData, *, flips: bool = False, threshold: float = 0.5, distances: bool = True
) -> SegmenterScores:
    """Score a model, patient by patient, on the slices of ``test``.

    Args:
        flips: see `outline`.
        threshold: a pixel is outlined where its probability is higher.
        distances: measure HD95 too, which takes longer than all the rest; only where ``test`` holds whole volumes.

    Raises:
        DataError: distances are asked for, and the slices of a patient are not 1 mm apart.
    """
    return score_outlines(lambda data: outline(model, data, flips=flips), test, threshold, distances)


def score_outlines(
    outliner: Callable[[SegmentationData], np.ndarray],
    test: SegmentationData,
    threshold: float = 0.5,
    distances: bool = True,
) -> SegmenterScores:
    """As `score_segmenter`, for anything that gives the probabilities of a patient's slices, such as an ensemble.

    Args:
        outliner: takes the data of one patient and returns what `outline` does.
        threshold, distances: as of `score_segmenter`, and so is what is refused.
    """
    dataset = test.slices.dataset
    if distances:
        _check_adjacent(test)
    about = {row["id"]: row for row in dataset.table()}
    rows, reliability = [], {name: np.zeros((10, 3)) for name in test.regions}
    counts = Counts(("NCR", "ED", "ET"))
    single = [SCORED.index(name) for name in counts.channels]
    for group in np.unique(test.groups):
        data = test.subset(np.flatnonzero(test.groups == group))
        probabilities = outliner(data)
        images, labels = (part.numpy() for part in data.slices.batch(np.arange(len(data))))
        masks = probabilities > threshold
        brain = images.any(1)
        truth = region_masks(labels, data.regions)
        for r, name in enumerate(data.regions):
            reliability[name] += _bins(probabilities[:, r][brain], truth[:, r][brain])
        predicted, true = convert_masks(masks, data.regions, SCORED), region_masks(labels, SCORED)
        metrics = ("dice", "hausdorff95") if distances else ("dice",)
        scores = score_volume(predicted, true, SCORED, metrics=metrics)
        row: dict[str, Any] = {"id": dataset.ids[group], "grade": about[dataset.ids[group]]["grade"]}
        for r, name in enumerate(SCORED):
            low = name.lower()
            row |= {
                f"ml_{low}": float(true[:, r].sum() / 1000),
                f"predicted_ml_{low}": float(predicted[:, r].sum() / 1000),
            }
            row[f"dice_{low}"] = scores["dice"][name]
            if distances:
                row[f"hd95_{low}"] = scores["hausdorff95"][name]
        rows.append(row)
        middle = np.isin(data.slices.z, MIDDLE)
        if middle.any():
            masks = (torch.from_numpy(part[middle][:, single]) for part in (predicted, true))
            counts.update(*masks, int(group))
    if len(counts):  # shuffled, as a loader of validation slices mixes patients
        counts = counts.rebatch(np.random.default_rng(0).permutation(len(counts)), POOLED)
    return SegmenterScores(rows, counts, {name: _finish(bins) for name, bins in reliability.items()})


def _check_adjacent(test: SegmentationData) -> None:
    """Refuse slices that are not 1 mm apart, from below upward: a distance through them would be wrong."""
    for group in np.unique(test.groups):
        z = test.slices.z[test.groups == group]
        if (gaps := np.flatnonzero(np.diff(z) != 1)).size:
            raise DataError(
                f"distances=True needs slices 1 mm apart, from below upward, but of {test.slices.dataset.ids[group]} "
                f"slice {z[gaps[0] + 1]} follows {z[gaps[0]]}: test whole volumes (z=WHOLE), or set distances=False"
            )


def _bins(probabilities: np.ndarray, truth: np.ndarray, bins: int = 10) -> np.ndarray:
    """Sum of probabilities, number of true pixels and of pixels for each tenth of probability."""
    which = np.minimum((probabilities.astype(np.float32) * bins).astype(np.int64), bins - 1)
    sums = (np.bincount(which, weights, bins) for weights in (probabilities.astype(np.float64), truth.astype(float)))
    return np.stack([*sums, np.bincount(which, minlength=bins)], 1)


def _finish(bins: np.ndarray) -> list[list[float]]:
    count = np.maximum(bins[:, 2], 1)
    return [
        [float(p), float(t), int(n)] for p, t, n in zip(bins[:, 0] / count, bins[:, 1] / count, bins[:, 2], strict=True)
    ]


def bootstrap_mean(values: Sequence[float] | np.ndarray, *, samples: int = 2000, seed: int = 0) -> Interval:
    """Mean over patients with its 95 % percentile bootstrap interval; several seeds as rows ``(S, N)`` are drawn too.

    Undefined values (nan) are left out.
    """
    table = np.atleast_2d(np.asarray(values, float))
    if table.size == 0:
        raise DataError("there are no values to average")
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(samples):
        seeds = rng.integers(len(table), size=len(table))
        drawn.append(table[seeds][:, rng.integers(table.shape[1], size=table.shape[1])])
    drawn = np.asarray(drawn).reshape(samples, -1)
    known = ~np.isnan(drawn)
    means = np.where(known, drawn, 0).sum(1)[known.any(1)] / known.sum(1)[known.any(1)]
    if not len(means):
        return Interval(float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(np.nanmean(table)), float(low), float(high))


def bootstrap_pooled(counts: Counts, *, samples: int = 2000, seed: int = 0) -> dict[str, dict[str, Interval]]:
    """The study's pooled metrics, by metric and channel as in `Counts.means`, with 95 % intervals over patients.

    Slices of one batch, and batches that share patients, are no sample of anything. So each draw takes patients with
    replacement, shuffles all their slices into batches of `POOLED`, and pools again.
    """
    value = counts.means("batch_pooled")
    owners = counts.owners
    members = [np.flatnonzero(owners == patient) for patient in counts.patients]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(samples):
        slices = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        means = counts.rebatch(rng.permutation(slices), POOLED).means("batch_pooled")
        drawn.append([[means[name][channel] for channel in means[name]] for name in means])
    table = np.array(drawn)  # (samples, metrics, channels and their mean)
    found: dict[str, dict[str, Interval]] = {}
    for m, name in enumerate(value):
        found[name] = {}
        for c, channel in enumerate(value[name]):
            known = table[:, m, c][~np.isnan(table[:, m, c])]
            ends = np.quantile(known, [0.025, 0.975]) if len(known) else (float("nan"),) * 2
            found[name][channel] = Interval(value[name][channel], *map(float, ends))
    return found


def describe_segmenter(trained: TrainedSegmenter, scores: SegmenterScores, profile: str = "full") -> Record:
    """The record of a run, to be saved with `brainlib.results.save_record`.

    Its metrics are, under the patient protocol, ``dice_…`` by region, and ``hd95_…`` where distances were measured:
    means over patients. Under the study's they are its seven pixel metrics by channel, such as ``dice_ncr``, pooled
    over batches of 32 slices and averaged over batches, as the study reports them; ``dice_mean`` is the mean of the
    channels. Either kind has an interval over patients. ``tables`` holds both kinds in either case.
    """
    recipe, dataset = trained.recipe, trained.test.slices.dataset
    pooled = scores.counts.means("batch_pooled")
    if trained.split == "study":
        metrics = {
            f"{name}_{channel.lower()}": interval
            for name, channels in bootstrap_pooled(scores.counts).items()
            for channel, interval in channels.items()
        }
    else:
        names = [f"{kind}_{region.lower()}" for kind in ("dice", "hd95") for region in SCORED]
        metrics = {
            name: bootstrap_mean([row[name] for row in scores.patients]) for name in names if name in scores.patients[0]
        }
    facts = {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "split": trained.split,
        "unit": "slices" if trained.split == "study" else "patients",
        "train": len(trained.train) if trained.split == "study" else len(trained.patients[0]),
        "validation": 0 if trained.split == "study" else len(trained.patients[1]),
        "test": len(trained.test) if trained.split == "study" else len(trained.patients[2]),
    }
    settings = recipe.to_dict() | {
        "epochs": trained.epochs,
        "recipe_epochs": recipe.epochs,
        "shortened": trained.epochs < recipe.epochs,
        "slices": len(trained.train),
        "parameters": count_parameters(trained.network),
        "precision": trained.precision,
        "processes": Processes.current().size,
        "worst_distance": WORST_DISTANCE,
    }
    tables = {
        "history": trained.history.to_dict(),
        "patients": scores.patients,
        "pooled": pooled,
        "per_patient_middle": scores.counts.means("per_patient"),
        "per_slice_middle": scores.counts.means("per_slice"),
        "reliability": scores.reliability,
        "split": [list(part) for part in trained.patients] if trained.split == "patient" else [],
    }
    return Record(
        CHAPTER,
        trained.run,
        recipe.model,
        profile,
        facts,
        settings,
        [trained.seed],
        metrics,
        trained.seconds,
        peak_memory_bytes=trained.peak_memory_bytes,
        tables=tables,
    )


def recorded_segmenters(split: str, habits: str = "own") -> dict[tuple[str, int], list[Record]]:
    """The recorded trainings of a protocol by network and number of epochs; those of a group differ by seed alone.

    Args:
        split: ``"study"`` or ``"patient"``.
        habits: as for `get_segmenter_recipe`. Trainings by any other recipe, or with patients of one's own, are left
            out.

    Raises:
        DataError: no such protocol or habits.
    """
    if split not in PROTOCOLS or habits not in HABITS:
        raise DataError(f"{split!r}, {habits!r}: choose a split of {PROTOCOLS} and habits of {HABITS}")
    mark = "" if habits == "own" else f"-{habits}"
    found: dict[tuple[str, int], list[Record]] = {}
    for record in load_records(CHAPTER):
        if re.fullmatch(rf"{re.escape(record.model)}{mark}-{split}-\d+(-\d+-epochs)?", record.run):
            found.setdefault((record.model, record.settings["epochs"]), []).append(record)
    return {key: sorted(found[key], key=lambda record: record.seeds) for key in sorted(found)}


def summarize_runs(records: Sequence[Record], metric: str) -> str:
    """One metric of runs that differ by seed alone, as a cell of a table.

    By patient: the mean with its 95 % interval over patients and seeds. Pooled, where slices are no sample of
    patients: the mean, and the smallest and largest of several seeds.
    """
    if not records:
        return "not run yet"
    if records[0].data["split"] == "patient":
        text = str(bootstrap_mean([[row[metric] for row in r.tables["patients"]] for r in records]))
    else:
        values = [r.metrics[metric].value for r in records]
        text = f"{np.mean(values):.3f}" + (f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else "")
    return text + f", {len(records)} seed{'s' * (len(records) > 1)}"


def segmenter_checkpoints() -> Path:
    """Where full runs of segmenters keep their checkpoints."""
    return data_root() / "runs" / CHAPTER
