"""Chapter 14: (text of the solution, what a student may write in its place, what the check then says)."""

CHAPTER = "14_comparing_segmenters"
GIVEN = """
from itertools import product

import numpy as np
import torch
from torch import nn
"""
CELLS = {"sign-flip": "\nclear ="}
WRONG = {
    "ex-1": [
        ("> level", "<= level", "which values do you keep"),
        ("> level", "> 0.05", "is level used"),
        ("d - value", "d + value", "is never rejected|which values do you keep"),
        ("return min(kept), max(kept)", "return min(kept), d.mean()", "is never rejected"),
    ],
    "ex-2": [
        ("(2 * precision - dice)", "(2 - dice)", "harmonic mean"),
        ("dice / (2 - dice)", "dice / 2", "IoU is Dice"),
        ("recall, 1 - recall", "recall, 1 - precision * 0.5", "one minus recall"),
        ("dice * precision / (2 * precision - dice)", "dice", "solve D = 2 P R"),
    ],
    "ex-3": [
        ("        if h\n", "", "held-out slices only|of four held-out"),
        ("(p, k - 1) in learned or (p, k + 1) in learned", "(p, k - 1) in learned", "the slice above counts"),
        ("if not h", "", "of four held-out"),
        (
            "(p, k - 1) in learned or (p, k + 1) in learned",
            "any(abs(k - j) == 1 for _, j in learned)",
            "the same patient",
        ),
        ("1 - 0.2**2", "0.8", "BOTH are held out"),
    ],
    "ex-4": [
        ("3 * 1000 * ml", "3 * ml", "1000 cubic millimeters"),
        (" + middle**3 / 16", "", "3 mm back|cubic term"),
        ("low, high = 0.0, 2.0", "low, high = 0.0, 1.0", "two radii"),
        ("r * (low + high) / 2", "(low + high) / 2", "3 mm back"),
    ],
    "ex-5": [
        ("entropy(members.mean(0))", "entropy(members).sum(0)", "do not disagree"),
        (".clamp(1e-9, 1 - 1e-9)", "", "must not give nan"),
        ("entropy(members).mean(0)", "entropy(members).amax(0)", "own doubt of 0.2 and 0.6"),
        ("entropy(members.mean(0)), entropy", "entropy(members.mean()), entropy", "one number a pixel"),
        ("return total, own, total - own", "return total, own, own", "do not disagree"),
    ],
    "ex-6": [
        ("for block in list(net.modules())", "for block in [net]", "inner block"),
        ("new.load_state_dict(old.state_dict())", "pass", "weight and bias kept"),
        ("nn.GroupNorm(groups,", "nn.GroupNorm(old.num_features,", "number of groups used"),
        ("    return net\n", "    return None\n", "return the network"),
    ],
}
