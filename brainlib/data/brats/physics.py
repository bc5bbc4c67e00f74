"""Which channel is which contrast: told from the picture itself, by what water, edema and the agent do to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .layout import MODALITIES

if TYPE_CHECKING:
    from .dataset import Volume

_ENOUGH = 500  # voxels below which nothing is said
_MARGIN = 0.05  # an answer that wins by less is called uncertain


@dataclass(frozen=True)
class Physics:
    """The contrasts that four channels were recognized as.

    Attributes:
        order: a name from `MODALITIES` for each channel; where ``certain`` is False it is the best guess.
        certain: every decision was clear.
        margins: by how much T2, FLAIR and T1c won (see `identify`).
        fluid: median brightness of the fluid voxels in each channel over that of the brain: 2 to 4 in T2,
            1 at most (mostly far less) in FLAIR.
        enhancing: the same for enhancing tumor; None where there is none.
    """

    order: tuple[str, ...]
    certain: bool
    margins: dict[str, float]
    fluid: tuple[float, ...] | None
    enhancing: tuple[float, ...] | None

    def __str__(self) -> str:
        text = ", ".join(self.order)
        if not self.certain:
            doubt = [name for name, margin in self.margins.items() if margin < _MARGIN] or ["too few voxels"]
            text += f" (uncertain: {', '.join(doubt)})"
        if self.fluid:
            flair, t2 = (self.fluid[self.order.index(name)] for name in ("FLAIR", "T2"))
            text += f"; fluid is {flair:.2f} times as bright as the brain in FLAIR, {t2:.2f} times in T2"
        if self.enhancing:
            t1, t1c = (self.enhancing[self.order.index(name)] for name in ("T1", "T1c"))
            text += f"; enhancing tumor {t1:.2f} times in T1, {t1c:.2f} times in T1c"
        return text


def check_physics(volume: Volume) -> Physics:
    """Recognize the contrasts of a volume from its voxels; see `identify`."""
    return identify(volume.images, volume.labels)


def identify(images: np.ndarray, labels: np.ndarray) -> Physics:
    """Recognize the contrasts of four channels, whatever their order and scale.

    1. T2: its brightest healthy voxels are fluid, which is dark in the other three (they rank lowest there). The
       margin is the difference in mean rank (0 to 1) to the runner-up.
    2. FLAIR, of the remaining three: edema is bright. The margin is the difference of the logarithms of edema over
       healthy brain. Without edema: the channel that correlates least with the other two.
    3. T1c, of the last two: enhancing tumor and vessels are bright in T1c alone. The margin adds the difference of the
       logarithms of enhancing tumor over brain to the difference in the rank of the brightest healthy voxels in the
       other channels (lower for T1c).

    Args:
        images: uint8 ``(Z, 4, H, W)``, background 0.
        labels: uint8 ``(Z, H, W)``.
    """
    step = max(1, len(images) // 40)  # a sample of a hundred thousand voxels tells as much as all of them
    sample = images[::step, :, ::2, ::2]
    healthy = sample.transpose(1, 0, 2, 3)[:, (sample > 0).all(1) & (labels[::step, ::2, ::2] == 0)]
    if healthy.shape[1] < _ENOUGH:
        return Physics(MODALITIES, False, {}, None, None)
    rank = np.stack([_ranks(channel) for channel in healthy])
    brain = np.median(healthy, axis=1)

    # For each channel: where its brightest voxels rank in the other three.
    elsewhere = np.array([np.delete(rank[:, own > 0.97], c, 0).mean() for c, own in enumerate(rank)])
    by_fluid = np.argsort(elsewhere)
    t2, rest = int(by_fluid[0]), sorted(by_fluid[1:])
    margins = {"T2": elsewhere[by_fluid[1]] - elsewhere[t2]}

    edema = _relative(images, labels == 2, brain)
    if edema is not None:
        score = np.log(edema)
    else:
        score = -np.corrcoef(rank)[:, rest].sum(1)
    by_edema = sorted(rest, key=lambda c: -score[c])
    flair, last = by_edema[0], sorted(by_edema[1:])
    margins["FLAIR"] = score[by_edema[0]] - score[by_edema[1]]

    enhancing = _relative(images, labels == 4, brain)
    score = -elsewhere if enhancing is None else np.log(enhancing) - elsewhere
    t1c, t1 = sorted(last, key=lambda c: -score[c])
    margins["T1c"] = score[t1c] - score[t1]

    names = {flair: "FLAIR", t1: "T1", t1c: "T1c", t2: "T2"}
    fluid = np.median(healthy[:, rank[t2] > 0.97], axis=1) / brain
    return Physics(
        order=tuple(names[c] for c in range(4)),
        certain=all(margin >= _MARGIN for margin in margins.values()),
        margins={name: round(float(margin), 3) for name, margin in margins.items()},
        fluid=tuple(round(float(v), 3) for v in fluid),
        enhancing=None if enhancing is None else tuple(round(float(v), 3) for v in enhancing),
    )


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of uint8 values from 0 to 1, equal values sharing their mean rank."""
    counts = np.bincount(values, minlength=256)
    upper = np.cumsum(counts)
    return ((upper - counts / 2) / len(values)).astype(np.float32)[values]


def _relative(images: np.ndarray, mask: np.ndarray, brain: np.ndarray) -> np.ndarray | None:
    """Median of each channel in the mask over the brain's; None where there are too few voxels."""
    z, rows, columns = np.nonzero(mask)
    values = images[z, :, rows, columns]
    values = values[(values > 0).all(1)]
    return np.median(values, axis=0) / brain if len(values) >= _ENOUGH else None
