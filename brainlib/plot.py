"""Figures with one look: a white card in light and dark mode, and colors that color-blind eyes tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette (Color Universal Design, 2008).
CLASS_COLORS = {"glioma": "#D55E00", "meningioma": "#0072B2", "notumor": "#009E73", "pituitary": "#CC79A7"}
CYCLE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


def use_style() -> None:
    """Set matplotlib's defaults for every figure of the course."""
    plt.rcParams.update(
        {
            "figure.facecolor": "white",
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "savefig.facecolor": "white",
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(color=CYCLE),
            "axes.grid": True,
            "axes.grid.axis": "y",
            "grid.color": "#e4e4e4",
            "axes.axisbelow": True,
            "legend.frameon": False,
            "image.cmap": "gray",
            "image.interpolation": "nearest",
        }
    )


def image_grid(
    images: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    *,
    columns: int = 6,
    side: float = 1.5,
    cmap: str = "gray",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Show ``(H, W)`` images in rows, without axes.

    Args:
        images: arrays of two axes.
        titles: one short line for each.
        side: width of one picture in inches.
        limits: the values shown as black and white; each image's own range without it.
    """
    rows = -(-len(images) // columns)
    height = side * (1.22 if titles is not None else 1.0)
    figure, axes = plt.subplots(rows, columns, figsize=(side * columns, height * rows), squeeze=False)
    low, high = limits if limits is not None else (None, None)
    for i, ax in enumerate(axes.flat):
        ax.axis("off")
        if i < len(images):
            ax.imshow(images[i], cmap=cmap, vmin=low, vmax=high)
            if titles is not None:
                ax.set_title(titles[i], fontsize=8, loc="center")
    return figure


def learning_curves(histories: Mapping[str, Sequence], what: Sequence[str] = ("loss", "score")) -> Figure:
    """Training (dashed) and validation (solid) curves of several runs, one panel for each of ``what``.

    Args:
        histories: a name for the legend to a list of `brainlib.train.History`, one for each seed.
        what: ``"loss"``, ``"score"`` or both; the score of a classifier is its accuracy.
    """
    size = {"figsize": (4.2 * len(what), 3.3), "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(1, len(what), **size)
    for ax, name in zip(axes.flat, what, strict=True):
        for color, (label, runs) in zip(cycle(CYCLE), histories.items(), strict=False):
            for i, history in enumerate(runs):
                epochs = np.arange(1, len(history) + 1)
                ax.plot(epochs, getattr(history, f"train_{name}"), "--", color=color, alpha=0.9, lw=1.3)
                values = getattr(history, f"validation_{name}")
                ax.plot(epochs[: len(values)], values, color=color, label=label if i == 0 else None)
        ax.set(xlabel="epoch", ylabel="accuracy" if name == "score" else "cross entropy")
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes.flat[-1].plot([], [], "--", color="#777777", lw=1.3, label="training")
    handles, labels = axes.flat[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 2 * len(what)))
    return figure


def confusion(matrix: np.ndarray, classes: Sequence[str], ax: Axes | None = None) -> Axes:
    """Draw a confusion matrix of counts, rows = truth; the shade is the share of the row."""
    ax = plt.subplots(figsize=(4, 3.6))[1] if ax is None else ax
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    ax.grid(False)
    for (row, column), count in np.ndenumerate(matrix):
        ax.text(
            column, row, str(count), ha="center", va="center", color="white" if share[row, column] > 0.5 else "black"
        )
    ax.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    ax.set_yticks(range(len(classes)), classes)
    ax.set(xlabel="model says", ylabel="truth")
    return ax
