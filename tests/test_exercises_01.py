"""The checks of the exercises of chapter 1 refuse wrong answers, and say what is wrong."""

import json
from pathlib import Path

import pytest

CHAPTER = Path(__file__).resolve().parents[1] / "chapters" / "01_mri_and_phantom.ipynb"
GIVEN = """
from math import log, pi, sqrt
import numpy as np
from numpy.testing import assert_allclose
from brainlib.data import phantom
from brainlib.data.phantom import TISSUES, Head, compose, slice_points

head = Head(np.random.default_rng(7))
trs = np.arange(200, 2001, 25)
ratios = np.random.default_rng(0).normal(5, 1, (12, len(trs)))
"""
CELLS = ("tissue-maps", "picture-by-hand", "inversion-check", "flair-signal", "relaxation", "rician")
WRONG = {
    "ex-1": [
        ("-t1 * np.log(1 - fraction)", "-t1 * np.log(fraction)", "tr_for"),
        ("-t1 * np.log(1 - fraction)", "t1 * np.log(1 - fraction)", "a wait is positive"),
        ("-t2 * np.log(fraction)", "-t2 * np.log(1 - fraction)", "te_for"),
    ],
    "ex-2": [
        ("if inverted(t1, tr, middle) < 0:", "if abs(inverted(t1, tr, middle)) < 0:", "signed magnetization"),
        ("    return (low + high) / 2", "    return t1 * log(2)", "does TR enter"),
        ("max(stir, key=stir.get)", '"edema"', "arrows still point down"),
    ],
    "ex-3": [
        ("* 1000 / r1", "/ r1", "factor of 1000"),
        ("(rate - 1 / t1)", "rate", "is 1/T1 subtracted"),
        ("max(0.0, (rate - 1 / t1) * 1000 / r1)", "(rate - 1 / t1) * 1000 / r1", "no dose is negative"),
    ],
    "ex-4": [
        ("np.mean(air) / np.sqrt(np.pi / 2)", "np.std(air)", "standard deviation"),
        ("np.mean(air) / np.sqrt(np.pi / 2)", "np.mean(air)", "mean of the air is above sigma"),
        ("2 * sigma**2", "sigma**2", "what both noises add"),
        ("np.sqrt(np.maximum(square, 0))", "np.sqrt(square)", "negative number"),
    ],
    "ex-5": [
        ("np.asarray(a) - np.asarray(b)", "np.asarray(b) - np.asarray(a)", "which of the two comes first"),
        ("difference[drawn].mean(1)", "np.asarray(a)[drawn].mean(1) - np.mean(b)", "values together"),
        ("[0.025, 0.975]", "[0.25, 0.75]", "97.5th percentile"),
    ],
    "ex-6": [
        ("np.geomspace(100, 8000, 200)", "np.geomspace(100, 3000, 200)", "T1 of csf"),
        ("factor = match / (curves**2).sum(1, keepdims=True)", "factor = 0.75", "T1 of white matter"),
        (".reshape(np.shape(pictures)[1:])", "", "shape of a picture"),
    ],
}


@pytest.fixture(scope="module")
def chapter():
    """Sources of all cells, and what the chapter has defined when its exercises begin."""
    cells = json.loads(CHAPTER.read_text(encoding="utf-8"))["cells"]
    source = {cell["id"]: "".join(cell["source"]) for cell in cells}
    place: dict = {}
    exec(GIVEN + source["spin-echo"], place)
    for name in CELLS:
        # Only what the cell defines, not what it then shows.
        exec(source[name].split("\nfor letter")[0].split("\nflair_signal =")[0], place)
    exec(source["console"].split("\n\n")[0], place)  # the small slice
    return source, place


def check(chapter, name: str, old: str, new: str) -> None:
    """Run an exercise's check on its solution with ``old`` replaced by ``new``."""
    source, place = chapter
    solution = source[f"{name}-solution"] + "\n"
    assert old in solution, "the solution has changed: change this test as well"
    place = dict(place)
    exec(solution.replace(old, new), place)
    exec(source[f"{name}-check"], place)


@pytest.mark.parametrize("name", WRONG)
def test_the_solution_passes(chapter, name):
    check(chapter, name, "", "")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of roots of negative numbers, which is the mistake
@pytest.mark.parametrize(("name", "old", "new", "message"), [(n, *w) for n, several in WRONG.items() for w in several])
def test_a_wrong_answer_is_refused(chapter, name, old, new, message):
    with pytest.raises(AssertionError, match=message):
        check(chapter, name, old, new)
