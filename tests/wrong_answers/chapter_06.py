"""Chapter 6: (text of the solution, what a student may write in its place, what the check then says)."""

CHAPTER = "06_alexnet_vgg"
GIVEN = """
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from brainlib.models import count_parameters
"""
CELLS = {
    "paper-net-first": None,
    "paper-net": None,
    "pooling-check": "for n in",
    "stacks": "C, side",
    "vgg-class-first": None,
    "vgg-class": None,
}
WRONG = {
    "ex-1": [
        ("(3, 2, 0), (5, 1, 2)", "(2, 2, 0), (5, 1, 2)", "pooling included"),
        ("[(3, 1, 1)] * 3", "[(3, 1, 1)] * 2", "from 224 pixels the widths"),
        ("256 * paper_sizes(n)[-1] ** 2", "256 * paper_sizes(n)[-1]", "all places of all 256 channels"),
        ("min(paper_sizes(n)) > 0", "min(paper_sizes(n)) >= 0", "the next smaller picture"),
    ],
    "ex-2": [
        ("w2.flip(2, 3)", "w2", "conv2d does not flip"),
        ("w2.flip(2, 3)", "w2.flip(2)", "needs a true convolution"),
        ("return merged.transpose(0, 1)", "return merged", "which axis of w1 plays the batch"),
        ("49 * C**2", "25 * C**2", "amount to one 7 x 7"),
        ("3 * 9 * C**2 - 49 * C**2", "27 * C - 49 * C", "you say -1,408"),
    ],
    "ex-3": [
        ("+ 8 * pool", "+ 4 * size * pool", "eight bytes in any precision"),
        ("(inputs + relu + pool) + 8 * pool", "(relu + pool) + 8 * pool", "bytes are kept, you say"),
        ("4 * 4 * parameters", "4 * parameters", "how many numbers does training keep"),
        ("gigabytes * 1e9", "8e9", "2 GB"),
    ],
    "ex-4": [
        (".item() ** -0.5", ".item() ** -1", "the gain of ReLU"),
        ("torch.linspace(-8, 8,", "torch.linspace(0, 8,", "the gain of no activation"),
        ("(scale / 2) ** (layers / 2)", "(scale / 2) ** layers", "13 layers"),
        ("(scale / 2) ** (layers / 2)", "scale ** (layers / 2)", "multiply the signal by"),
        ("f(z) ** 2 * density", "F.relu(z) ** 2 * density", "the gain of no activation"),
    ],
    "ex-5": [
        ("np.cumsum(history.seconds)", "np.array(history.seconds)", "Add up the seconds"),
        ("scores.max()", "scores[-1]", "the best"),
        ("scores = scores[~np.isnan(scores)]", "scores = np.nan_to_num(scores)", "left out of the mean"),
        ("sides[0] - sides[1]", "sides[1] - sides[0]", "the difference is 0.2"),
    ],
    "ex-6": [
        ("nn.BatchNorm2d(c_out),\n", "", "you have 13 and 0"),
        ("nn.BatchNorm2d(c_out),", "nn.BatchNorm2d(c_out), nn.BatchNorm2d(c_out),", "you have 13 and 26"),
        ("nn.Conv2d(c_in, c_out, 3, padding=1)", "nn.Conv2d(c_in, c_out, 1)", "parameters; you have"),
        ("(2, 2, 3, 3, 3)", "(2, 2, 2, 3, 3)", "you have 12 and 12"),
    ],
}
