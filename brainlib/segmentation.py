"""Metrics of segmentation, on masks: bool arrays or tensors, True inside the region.

Two ways in. A function such as `dice` compares one mask with another (a patient's volume, or one slice) and returns a
number. `Counts` compares many slices without waiting for the device, and adds up the same counts by patient, by slice
or by batch afterwards: three aggregations that tell different stories about the same predictions.

A score is undefined where its denominator is 0. What then counts is named by ``empty``:

- ``"brats"``: two empty masks score as perfect, one alone as worst (Dice 1 or 0, HD95 0 or 373.13 mm), so that a false
  alarm in a patient without the region costs as much as a missed one; as in the BraTS challenge.
- ``"one"``: whatever is 0/0 scores as perfect (Dice 1, recall 1, false positive rate 0); HD95 to an empty mask is inf.
- ``"nan"``: it is nan, and means leave it out.

For teaching and research, not a medical device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from brainlib.data.brats import LABELS
from brainlib.files import DataError

Mask: TypeAlias = np.ndarray | torch.Tensor

EMPTY = ("brats", "one", "nan")
AGGREGATIONS = ("per_patient", "per_slice", "batch_pooled")
#: What BraTS takes for the distance to an empty mask: the diagonal of its volumes, 240 × 240 × 155 mm.
WORST_DISTANCE = 373.13
#: The study adds this to denominators, and to the numerator of Dice.
EPSILON = 1e-6

# Each metric as numerator and denominator of the counts, and its best value.
_RATIOS: dict[str, tuple[Callable, Callable, float]] = {
    "dice": (lambda tp, fp, fn, tn: 2 * tp, lambda tp, fp, fn, tn: 2 * tp + fp + fn, 1.0),
    "iou": (lambda tp, fp, fn, tn: tp, lambda tp, fp, fn, tn: tp + fp + fn, 1.0),
    "accuracy": (lambda tp, fp, fn, tn: tp + tn, lambda tp, fp, fn, tn: tp + fp + fn + tn, 1.0),
    "false_positive_rate": (lambda tp, fp, fn, tn: fp, lambda tp, fp, fn, tn: fp + tn, 0.0),
    "false_negative_rate": (lambda tp, fp, fn, tn: fn, lambda tp, fp, fn, tn: fn + tp, 0.0),
    "precision": (lambda tp, fp, fn, tn: tp, lambda tp, fp, fn, tn: tp + fp, 1.0),
    "recall": (lambda tp, fp, fn, tn: tp, lambda tp, fp, fn, tn: tp + fn, 1.0),
}
#: Names of the metrics that follow from counts of pixels.
PIXEL_METRICS = tuple(_RATIOS)


def dice(prediction: Mask, target: Mask, *, empty: str = "brats") -> float:
    """2 TP / (2 TP + FP + FN): overlap, relative to the mean size of the two (Dice 1945, doi 10.2307/1932409)."""
    return _ratio("dice", prediction, target, empty=empty)


def iou(prediction: Mask, target: Mask, *, empty: str = "brats") -> float:
    """TP / (TP + FP + FN): overlap, relative to the union of the two; Dice / (2 - Dice)."""
    return _ratio("iou", prediction, target, empty=empty)


def accuracy(prediction: Mask, target: Mask, *, empty: str = "brats") -> float:
    """(TP + TN) / all: near 1 for any small region, since the background is easy."""
    return _ratio("accuracy", prediction, target, empty=empty)


def false_positive_rate(prediction: Mask, target: Mask, *, empty: str = "brats") -> float:
    """FP / (FP + TN): share of the background that is outlined; near 0 for any small region."""
    return _ratio("false_positive_rate", prediction, target, empty=empty)


def false_negative_rate(prediction: Mask, target: Mask, *, empty: str = "brats") -> float:
    """FN / (FN + TP): share of the region that is missed."""
    return _ratio("false_negative_rate", prediction, target, empty=empty)


def precision(prediction: Mask, target: Mask, *, empty: str = "brats") -> float:
    """TP / (TP + FP): share of the outline that is right."""
    return _ratio("precision", prediction, target, empty=empty)


def recall(prediction: Mask, target: Mask, *, empty: str = "brats") -> float:
    """TP / (TP + FN): share of the region that is found."""
    return _ratio("recall", prediction, target, empty=empty)


def hausdorff95(
    prediction: Mask, target: Mask, *, spacing: float | Sequence[float] = 1.0, empty: str = "brats"
) -> float:
    """How far apart the outlines are, in mm, but for the worst 5 % of their points.

    The larger of two 95th percentiles: of the distances from the surface of the prediction to that of the target, and
    of those back. (Some libraries pool the distances first; for one small false island the answers then differ by tens
    of millimeters.) See `surface_distances` for the surface and ``spacing``.
    """
    _check_empty(empty)
    forth, back = surface_distances(prediction, target, spacing=spacing)
    if len(forth) and len(back):
        return float(max(np.percentile(forth, 95), np.percentile(back, 95)))
    if not len(forth) and not len(back):
        return float("nan") if empty == "nan" else 0.0
    return {"brats": WORST_DISTANCE, "one": float("inf"), "nan": float("nan")}[empty]


def surface_dice(
    prediction: Mask,
    target: Mask,
    *,
    tolerance: float,
    spacing: float | Sequence[float] = 1.0,
    empty: str = "brats",
) -> float:
    """Share of the two surfaces that lies within ``tolerance`` mm of the other (Nikolov et al. 2018, arXiv 1809.04430).

    Surfaces are counted in pixels, see `surface_distances`; the paper weighs each by its area.
    """
    if not tolerance >= 0:
        raise DataError(f"tolerance={tolerance}: give a distance of 0 mm or more")
    _check_empty(empty)
    forth, back = surface_distances(prediction, target, spacing=spacing)
    if not len(forth) and not len(back):
        return float("nan") if empty == "nan" else 1.0
    if not len(forth) or not len(back):
        return 0.0
    return float(((forth <= tolerance).sum() + (back <= tolerance).sum()) / (len(forth) + len(back)))


def surface_distances(
    prediction: Mask, target: Mask, *, spacing: float | Sequence[float] = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Distance in mm from each surface pixel of the prediction to the surface of the target, and back.

    The surface is every pixel of the mask with a neighbor outside it (4 neighbors in a slice, 6 in a volume; beyond the
    edge of the image is outside). Distances are between centers of pixels.

    Args:
        prediction, target: bool, of one shape, one axis for each number in ``spacing``.
        spacing: mm from one pixel to the next, one number or one an axis.

    Returns:
        Two float64 arrays, one entry a surface pixel. If a mask is empty its own is empty, and the other all inf.
    """
    prediction, target = _pair(prediction, target)
    steps = np.asarray(spacing, float)
    if steps.shape not in ((), (target.ndim,)) or not (np.isfinite(steps) & (steps > 0)).all():
        raise DataError(f"spacing={spacing}: give one number above 0, or {target.ndim}, one an axis of the mask")
    points = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) * steps for mask in _crop(prediction, target)]
    if not all(map(len, points)):
        return tuple(np.full(len(these), np.inf) for these in points)
    return cKDTree(points[1]).query(points[0])[0], cKDTree(points[0]).query(points[1])[0]


def lesion_wise_dice(
    prediction: Mask,
    target: Mask,
    *,
    dilation: int = 3,
    minimum: int = 50,
    empty: str = "brats",
) -> float:
    """Mean Dice over lesions, in which a false lesion counts as 0; the rule of BraTS 2023 for gliomas.

    1. The target is dilated ``dilation`` times by one pixel (along faces and edges, not across corners). What is then
       connected, corners included, is one zone; the true pixels in it are one lesion.
    2. The prediction is cut into connected pieces, corners included. A piece that touches a zone belongs to its lesion,
       and may belong to several. A piece that touches none is a false lesion, however small.
    3. A lesion scores the Dice of its pixels with all pieces that belong to it: 0 if there are none.
    4. Lesions of ``minimum`` pixels or fewer are left out (their pieces are not false lesions).
    5. The result is the sum of the scores divided by the number of lesions that are left and of false ones.

    Where nothing is left to divide by, the result is 1, or nan with ``empty="nan"``. Of the challenge's own code
    (https://github.com/rachitsaluja/BraTS-2023-Metrics) this follows the settings for gliomas in pixels of 1 mm.
    """
    _check_empty(empty)
    if dilation < 0 or minimum < 0:
        raise DataError(f"dilation={dilation}, minimum={minimum}: both must be 0 or more")
    prediction, target = _pair(prediction, target)
    prediction, target = _crop(prediction, target)  # zones lose what sticks out, and no contact
    corners = np.ones((3,) * target.ndim, bool)
    near = target
    if dilation:  # SciPy takes 0 iterations for "until nothing changes"
        neighbors = ndimage.generate_binary_structure(target.ndim, min(2, target.ndim))
        near = ndimage.binary_dilation(target, neighbors, iterations=dilation)
    zones, lesions = ndimage.label(near, corners)
    pieces, parts = ndimage.label(prediction, corners)

    belongs = np.zeros((lesions + 1, parts + 1), bool)  # row and column 0 are the background
    belongs[zones, pieces] = True
    belongs = belongs[1:, 1:]
    size = np.bincount(zones[target], minlength=lesions + 1)[1:]
    found = np.bincount(zones[target & prediction], minlength=lesions + 1)[1:]
    predicted = belongs @ np.bincount(pieces.ravel(), minlength=parts + 1)[1:]
    counted = size > minimum
    total = counted.sum() + (~belongs.any(0)).sum()
    if total == 0:
        return float("nan") if empty == "nan" else 1.0
    return float((2 * found / (size + predicted))[counted].sum() / total)


def label_map(masks: Mask, regions: Sequence[str]) -> Mask:
    """Labels 0, 1, 2, 4 from masks of three regions: one answer a pixel.

    Args:
        masks: bool ``(..., 3, H, W)``.
        regions: which they are: ``("NCR", "ED", "ET")`` in any order, or ``("WT", "TC", "ET")`` in any order. Where
            single labels overlap, ET stands above NCR, and NCR above ED. Of nested regions the whole tumor is ED, but
            for the core, which is NCR, but for ET; what a smaller region claims beyond a larger one counts as well.

    Returns:
        uint8 ``(..., H, W)`` of the same kind, on the same device.
    """
    names = tuple(regions)
    if sorted(names) == ["ED", "ET", "NCR"]:
        layers = ("ED", "NCR", "ET")
    elif sorted(names) == ["ET", "TC", "WT"]:
        layers = ("WT", "TC", "ET")
    else:
        raise DataError(f"regions={names}: labels follow from NCR, ED and ET, or from WT, TC and ET")
    if masks.ndim < 3 or masks.shape[-3] != 3 or masks.dtype not in (torch.bool, np.dtype(bool)):
        raise DataError(
            f"masks must be bool (..., 3, H, W): {', '.join(names)}; not {masks.dtype} {tuple(masks.shape)}"
        )
    first = masks[..., 0, :, :]
    labels = (
        torch.zeros_like(first, dtype=torch.uint8) if isinstance(masks, torch.Tensor) else first.astype(np.uint8) * 0
    )
    for layer, value in zip(layers, (LABELS["ED"], LABELS["NCR"], LABELS["ET"]), strict=True):
        labels[masks[..., names.index(layer), :, :]] = value
    return labels


def slice_dice(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Mean Dice over the channels of each slice, ``(B, C, H, W)`` to float ``(B,)``, both empty scoring 1.

    A quick look at a training, on the device. What is reported is the Dice of whole patients. The two differ much where
    many slices have no tumor: a network that outlines nothing scores 1 on each mask that is empty, so its mean is the
    share of empty masks, not 0.
    """
    prediction, masks = logits > 0, masks > 0
    both = (prediction & masks).flatten(2).sum(-1)
    sizes = prediction.flatten(2).sum(-1) + masks.flatten(2).sum(-1)
    return torch.where(sizes > 0, 2 * both / sizes.clamp(min=1), 1.0).mean(1)


def score_volume(
    prediction: Mask,
    target: Mask,
    regions: Sequence[str] = ("WT", "TC", "ET"),
    *,
    metrics: Iterable[str] = ("dice", "hausdorff95"),
    spacing: float | Sequence[float] = 1.0,
    tolerance: float = 1.0,
    empty: str = "brats",
) -> dict[str, dict[str, float]]:
    """Scores of one patient by metric and region.

    Args:
        prediction, target: bool ``(Z, R, H, W)``, channels named by ``regions``: what `region_masks` makes of the
            labels of a `Volume`, and a model's masks of the same slices in the same order.
        metrics: names of functions of this module.
        spacing: mm from one pixel to the next along Z, H and W.
        tolerance: of ``"surface_dice"``.
    """
    prediction, target = _pair(prediction, target)
    if prediction.ndim != 4 or prediction.shape[1] != len(regions):
        raise DataError(f"masks must be (Z, {len(regions)}, H, W) for {', '.join(regions)}, not {prediction.shape}")
    functions: dict[str, Callable[..., float]] = {
        **{name: partial(_ratio, name) for name in PIXEL_METRICS},
        "hausdorff95": partial(hausdorff95, spacing=spacing),
        "surface_dice": partial(surface_dice, spacing=spacing, tolerance=tolerance),
        "lesion_wise_dice": lesion_wise_dice,
    }
    metrics = list(metrics)
    if unknown := [name for name in metrics if name not in functions]:
        raise DataError(f"metrics={unknown}: choose from {', '.join(functions)}")
    return {
        name: {region: functions[name](prediction[:, r], target[:, r], empty=empty) for r, region in enumerate(regions)}
        for name in metrics
    }


class Counts:
    """Counts of right and wrong pixels, slice by slice, kept on the device until a score is asked for.

    Args:
        channels: names of the channels of the masks.

    Example:
        counts = Counts()
        for images, masks, patients in batches:
            counts.update(model(images) > 0, masks, patients)
        counts.means("per_patient")["dice"]  # {"WT": ..., "TC": ..., "ET": ..., "mean": ...}
    """

    def __init__(self, channels: Sequence[str] = ("WT", "TC", "ET")) -> None:
        self.channels = tuple(channels)
        self._counts: list[torch.Tensor] = []  # one int64 (B, C, 4) an update
        self._patients: list[torch.Tensor] = []

    def __len__(self) -> int:
        """Number of slices."""
        return sum(len(batch) for batch in self._counts)

    @torch.no_grad()
    def update(self, prediction: torch.Tensor, target: torch.Tensor, patients: int | Sequence[int] | Mask) -> None:
        """Count one batch. Nothing waits for the device.

        Args:
            prediction, target: bool ``(B, C, ...)`` on one device. Each of the B is one slice.
            patients: the patient of each slice, int ``(B,)``, or one number for all.

        Raises:
            DataError: masks that are not bool, or shapes that do not fit.
        """
        shape = tuple(prediction.shape)
        if shape != tuple(target.shape) or len(shape) < 3 or shape[1] != len(self.channels):
            raise DataError(
                f"masks must both be (B, {len(self.channels)}, ...) for {', '.join(self.channels)}, not {shape} and "
                f"{tuple(target.shape)}"
            )
        if prediction.dtype != torch.bool or target.dtype != torch.bool:
            raise DataError(f"masks must be bool, not {prediction.dtype} and {target.dtype}: {_HOW}")
        patients = torch.as_tensor(patients)
        if patients.is_floating_point() or patients.shape not in ((), (shape[0],)):
            found = f"{patients.dtype} {tuple(patients.shape)}"
            raise DataError(f"patients must be {shape[0]} integers, or one for all, not {found}")
        both, predicted, true = (
            mask.flatten(2).sum(-1, dtype=torch.int64) for mask in (prediction & target, prediction, target)
        )
        pixels = prediction[0, 0].numel()
        parts = [both, predicted - both, true - both, pixels - predicted - true + both]
        self._counts.append(torch.stack(parts, -1))
        self._patients.append(patients.long().expand(shape[0]).clone())

    @property
    def patients(self) -> np.ndarray:
        """int64: the patients seen, sorted; the rows of ``per_patient`` tables."""
        return np.unique(self._slices()[1])

    @property
    def owners(self) -> np.ndarray:
        """int64 ``(N,)``: the patient of each slice, in the order of updates."""
        return self._slices()[1]

    def rebatch(self, index: np.ndarray, size: int = 32) -> Counts:
        """The slices at ``index`` (positions in the order of updates, repeated ones too) in batches of ``size``."""
        counts, patients = self._slices()
        found = Counts(self.channels)
        found._counts = list(torch.from_numpy(counts[index]).split(size))
        found._patients = list(torch.from_numpy(patients[index]).split(size))
        return found

    def table(self, aggregation: str = "per_patient") -> np.ndarray:
        """TP, FP, FN and TN, int64 ``(G, C, 4)``.

        G is the number of patients (in the order of ``patients``), of slices or of batches (in the order of updates).
        """
        if aggregation not in AGGREGATIONS:
            raise DataError(f"aggregation={aggregation!r}: choose from {', '.join(AGGREGATIONS)}")
        counts, patients = self._slices()
        if aggregation == "per_slice":
            return counts
        if aggregation == "per_patient":
            _, groups = np.unique(patients, return_inverse=True)
        else:
            groups = np.repeat(np.arange(len(self._counts)), [len(batch) for batch in self._counts])
        total = np.zeros((groups.max() + 1, *counts.shape[1:]), np.int64)
        np.add.at(total, groups, counts)
        return total

    def scores(
        self,
        aggregation: str = "per_patient",
        empty: str | None = None,
        metrics: Iterable[str] = PIXEL_METRICS,
    ) -> dict[str, np.ndarray]:
        """Scores by metric, float64 ``(G, C)``, rows as in `table`.

        Args:
            aggregation: ``"per_patient"``: over all slices of a patient, which is the score of its volume.
                ``"per_slice"``: of each slice. ``"batch_pooled"``: over all slices of an `update`, exactly as the study
                did, with 1e-6 added to denominators (and to the numerator of Dice), and nan for a channel with neither
                prediction nor target in the batch. Large regions then hide small ones that were missed.
            empty: ``"brats"`` (the default), ``"one"`` or ``"nan"``. The study's aggregation has its own rule.
            metrics: names in `PIXEL_METRICS`.

        Raises:
            DataError: an unknown name, ``empty`` with ``batch_pooled``, or no slices.
        """
        metrics = list(metrics)
        if unknown := [name for name in metrics if name not in _RATIOS]:
            raise DataError(f"metrics={unknown}: choose from {', '.join(PIXEL_METRICS)}")
        counts = self.table(aggregation).astype(np.float64)
        if aggregation == "batch_pooled":
            if empty is not None:
                raise DataError(f"empty={empty!r}: batch_pooled has the study's own rule, nan; leave empty out")
            return {name: _study(name, counts) for name in metrics}
        return {name: _divide(name, counts, empty or "brats") for name in metrics}

    def means(
        self,
        aggregation: str = "per_patient",
        empty: str | None = None,
        metrics: Iterable[str] = PIXEL_METRICS,
    ) -> dict[str, dict[str, float]]:
        """Means over patients, slices or batches, by metric and channel, and ``"mean"`` over the channels.

        Undefined scores (nan) are left out of both; what is nan everywhere stays nan. Arguments: as of `scores`.
        """
        means = {}
        for name, values in self.scores(aggregation, empty, metrics).items():
            columns = [_mean(column) for column in values.T]
            means[name] = dict(zip((*self.channels, "mean"), (*columns, _mean(np.array(columns))), strict=True))
        return means

    def _slices(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts ``(N, C, 4)`` and patients ``(N,)`` of all slices, fetched from the device."""
        if not len(self):
            raise DataError("there is nothing to score: call update() with a batch first")
        return torch.cat(self._counts).cpu().numpy(), torch.cat([batch.cpu() for batch in self._patients]).numpy()


_HOW = "compare probabilities with a threshold (logits > 0), or make masks of labels with region_masks"


def _ratio(name: str, prediction: Mask, target: Mask, *, empty: str) -> float:
    prediction, target = _pair(prediction, target)
    tp, predicted, true = (prediction & target).sum(), prediction.sum(), target.sum()
    counts = np.array([tp, predicted - tp, true - tp, prediction.size - predicted - true + tp], np.float64)
    return float(_divide(name, counts, empty))


def _divide(name: str, counts: np.ndarray, empty: str) -> np.ndarray:
    """A metric of counts ``(..., 4)``, with one of the rules for empty masks."""
    _check_empty(empty)
    _, fp, fn, _ = parts = np.moveaxis(counts, -1, 0)
    numerator, denominator, best = _RATIOS[name]
    whole = denominator(*parts)
    values = np.divide(numerator(*parts), whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    if empty == "nan":
        return values
    undefined = np.full(whole.shape, best)
    if empty == "brats" and name != "false_positive_rate":
        undefined[fp + fn > 0] = 1 - best  # one mask is empty and the other is not
    return np.where(whole > 0, values, undefined)


def _study(name: str, counts: np.ndarray) -> np.ndarray:
    """A metric of counts ``(..., 4)`` as the study computed it."""
    tp, fp, fn, _ = parts = np.moveaxis(counts, -1, 0)
    numerator, denominator, _ = _RATIOS[name]
    extra = EPSILON if name != "accuracy" else 0
    values = (numerator(*parts) + (EPSILON if name == "dice" else 0)) / (denominator(*parts) + extra)
    return np.where(tp + fp + fn > 0, values, np.nan)


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _check_empty(empty: str) -> None:
    if empty not in EMPTY:
        raise DataError(f"empty={empty!r}: choose from {', '.join(EMPTY)}")


def _pair(prediction: Mask, target: Mask) -> tuple[np.ndarray, np.ndarray]:
    """The two as bool arrays, checked."""
    pair = [
        mask.detach().cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
        for mask in (prediction, target)
    ]
    for name, mask in zip(("prediction", "target"), pair, strict=True):
        if mask.dtype != bool:
            raise DataError(f"{name} must be bool, not {mask.dtype}: {_HOW}")
    if pair[0].shape != pair[1].shape or pair[0].size == 0:
        raise DataError(f"prediction {pair[0].shape} and target {pair[1].shape} must have one shape, and pixels")
    return pair[0], pair[1]


def _crop(prediction: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both, cut to the box that holds everything: far less to look at."""
    box = ndimage.find_objects((prediction | target).astype(np.uint8))
    return (prediction[box[0]], target[box[0]]) if box else (prediction, target)
