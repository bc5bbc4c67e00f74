"""Chapter 1: (text of the solution, what a student may write in its place, what the check then says)."""

CHAPTER = "01_mri_and_phantom"
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
# What exercises need from the chapter: cells, each up to the text that begins what it then shows.
CELLS = {
    "spin-echo": "",
    "tissue-maps": "",
    "picture-by-hand": "\nfor letter",
    "inversion-check": "",
    "flair-signal": "\nflair_signal =",
    "relaxation": "",
    "rician": "",
    "console": "\n\n",
}
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
