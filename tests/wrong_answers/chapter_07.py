"""Chapter 7: (text of the solution, what a student may write in its place, what the check then says)."""

CHAPTER = "07_vision_transformer"
GIVEN = """
import math
from itertools import product

import torch
import torch.nn.functional as F
from brainlib.models import VisionTransformer, count_multiply_adds, count_parameters
from brainlib.models.attention import PreNormLayer
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import nn

small_vit = pre_norm = None
"""
CELLS = {
    "small-cnn": None,
    "network-class": None,
    "repair-arms": None,
    "logit-dropout-run": None,
    "ex-3-solution": None,
}
WRONG = {
    "ex-1": [
        ("permute(0, 2, 4, 3, 5, 1)", "permute(0, 2, 4, 1, 3, 5)", "wrong order"),
        ("permute(0, 5, 1, 3, 2, 4)", "permute(0, 5, 3, 1, 4, 2)", "undo the permutation"),
        ("c, rows * p, columns * p", "c, columns * p, rows * p", "comes back as"),
    ],
    "ex-2": [
        ("2 * n**2 * dim\n", "n**2 * dim\n", "one layer more costs"),
        ("4 * dim**2", "3 * dim**2", "one layer more costs"),
        ("2 * dim + hidden", "4 * dim + 2 * hidden", "should be equal"),
        ("(155 // 16)", "-(-155 // 16)", "you say"),
    ],
    "ex-3": [
        ("for axis in (y, x)", "for axis in (x, y)", "same row"),
        ("100.0 **", "10000.0 **", "Which frequencies"),
        ("(torch.sin, torch.cos)", "(torch.cos, torch.sin)", "all sines are 0"),
    ],
    "ex-4": [
        ("(1 - p) + p * sum(wins) / classes", "1 - p", "lose the tie"),
        ("range(classes)", "range(1, classes + 1)", "without dropout|masks give"),
    ],
    "ex-5": [
        ("torch.cdist(centers, centers)", "torch.cdist(centers, centers) / patch", "6 pixels on average"),
        ("(table * apart).sum(-1).mean(-1)", "(table * apart).mean((-1, -2))", "6 pixels on average"),
        ("torch.cdist(centers, centers)", "torch.cdist(centers, centers, p=1)", "Pythagoras"),
    ],
    "ex-6": [
        ("len(differ) == 1", "len(differ) <= 1", "a setting that is None|equal runs"),
        (".get(s, absent) != table[b].get(s, absent)", ".get(s) != table[b].get(s)", "a setting that is None"),
        ("{*table[a], *table[b]}", "table[a]", "that is two|you find"),
    ],
    "ex-7": [
        ("torch.zeros(1, 32), places(8, 32)", "places(8, 32), torch.zeros(1, 32)", "first row belongs"),
        (
            'del net.position\n    net.register_buffer("position", table[None])',
            "net.position.data.copy_(table[None])",
            "still a parameter",
        ),
        ('net.register_buffer("position", table[None])', "net.position = table[None]", "lost on the way"),
    ],
}
