"""Figures show all the data that they are given, in one look."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from brainlib import plot
from brainlib.data import CLASSES
from brainlib.train import History

OKABE_ITO = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}


@pytest.fixture(autouse=True)
def clean():
    with plt.rc_context():
        yield
    plt.close("all")


def runs(seeds: int, epochs: int = 3, validation: bool = True) -> list[History]:
    return [
        History(
            train_loss=[1.0 / (e + 1 + s) for e in range(epochs)],
            train_score=[0.5 + 0.1 * e for e in range(epochs)],
            validation_loss=[1.1 / (e + 1 + s) for e in range(epochs)] if validation else [],
            validation_score=[0.4 + 0.1 * e for e in range(epochs)] if validation else [],
            learning_rate=[1e-3] * epochs,
            seconds=[1.0] * epochs,
        )
        for s in range(seeds)
    ]


def test_colors_are_for_all_eyes():
    assert tuple(plot.CLASS_COLORS) == CLASSES
    assert set(plot.CLASS_COLORS.values()) <= OKABE_ITO and len(set(plot.CLASS_COLORS.values())) == 4
    assert set(plot.CYCLE) <= OKABE_ITO and len(set(plot.CYCLE)) == len(plot.CYCLE)


def test_style_is_a_white_card():
    plot.use_style()
    figure, ax = plt.subplots()
    (line,) = ax.plot([0, 1])
    assert to_hex(figure.get_facecolor()) == to_hex(plt.rcParams["savefig.facecolor"]) == "#ffffff"
    assert line.get_color().upper() == plot.CYCLE[0].upper() and not ax.spines["top"].get_visible()


@pytest.mark.parametrize("count", [1, 6, 8])
def test_grid_shows_every_image_with_its_title(count):
    images = [np.full((5, 7), i, np.uint8) for i in range(count)]
    figure = plot.image_grid(images, [f"no. {i}" for i in range(count)], columns=3, limits=(0, 255))
    shown = [ax for ax in figure.axes if ax.images]
    assert len(shown) == count and not any(ax.axison for ax in figure.axes)
    for i, ax in enumerate(shown):
        np.testing.assert_array_equal(ax.images[0].get_array(), images[i])
        assert ax.get_title() == f"no. {i}" and ax.images[0].get_clim() == (0, 255)


def test_grid_without_limits_uses_the_range_of_each_image():
    figure = plot.image_grid([np.array([[2.0, 5.0]]), np.array([[-1.0, 1.0]])])
    assert [ax.images[0].get_clim() for ax in figure.axes[:2]] == [(2, 5), (-1, 1)]


def test_curves_of_several_runs():
    figure = plot.learning_curves({"with": runs(2), "without": runs(2)})
    loss, score = figure.axes
    assert (loss.get_ylabel(), score.get_ylabel()) == ("cross entropy", "accuracy")
    drawn = [line for line in loss.lines if len(line.get_xdata())]
    assert len(drawn) == 2 * 2 * 2
    assert drawn[0].get_ydata() == pytest.approx(runs(2)[0].train_loss) and drawn[0].get_linestyle() == "--"
    assert drawn[1].get_ydata() == pytest.approx(runs(2)[0].validation_loss) and drawn[1].get_linestyle() == "-"
    assert list(drawn[0].get_xdata()) == [1, 2, 3]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["with", "without", "training"]
    assert drawn[0].get_color() == drawn[3].get_color() != drawn[4].get_color()


def test_curves_without_validation_and_with_one_panel():
    figure = plot.learning_curves({"a": runs(1, validation=False)}, what=["score"])
    assert len(figure.axes) == 1
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [3, 0, 0]


def test_more_runs_than_colors_are_all_drawn():
    names = [str(i) for i in range(len(plot.CYCLE) + 2)]
    figure = plot.learning_curves({name: runs(1) for name in names})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*names, "training"]


def test_confusion_shows_counts_and_shares():
    matrix = np.array([[8, 2, 0], [1, 0, 9], [0, 0, 0]])
    ax = plot.confusion(matrix, ["a", "b", "c"])
    assert [text.get_text() for text in ax.texts] == [str(n) for n in matrix.ravel()]
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.8, 0.2, 0], [0.1, 0, 0.9], [0, 0, 0]])
    assert (
        [t.get_text() for t in ax.get_yticklabels()] == [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "c"]
    )
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("model says", "truth")
    colors = {text.get_text(): text.get_color() for text in ax.texts}
    assert colors["9"] == "white" and colors["2"] == "black"  # readable on dark and on light
    assert plot.confusion(matrix, ["a", "b", "c"], ax=ax) is ax
