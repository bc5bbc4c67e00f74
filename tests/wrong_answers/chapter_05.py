"""Chapter 5: (text of the solution, what a student may write in its place, what the check then says)."""

CHAPTER = "05_custom_cnn"
GIVEN = """
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from brainlib.evaluate import bootstrap
from brainlib.metrics import accuracy
from brainlib.models import CustomCNN, count_parameters
"""
CELLS = {"channels-check": "stem ="}
WRONG = {
    "ex-1": [
        ("return (n + 2 * p - span) // s + 1", "return (n + 2 * p - k) // s + 1", "how wide is the window"),
        ("return (n + 2 * p - span) // s + 1", "return (n + 2 * p - span) // s", "output_size"),
        ("return d\n", "return 1\n", "the size changes"),
    ],
    "ex-2": [
        ("3 + (5 - 1) * 2", "3 + (5 - 1)", "receptive_field is 11, you say 7"),
        ("first[0] + second[0]", "second[0]", "parameters is"),
        ("nn.Conv2d(48, 96, 5, stride=2)", "nn.Conv2d(48, 96, 5, stride=2, padding=2)", "96 maps of 30 x 30"),
    ],
    "ex-3": [
        ("unbiased=True", "unbiased=False", "running variance"),
        ("(1 - momentum) * mean + momentum * use_mean", "momentum * mean + (1 - momentum) * use_mean", "running mean"),
        ("if training:", "if True:", "in evaluation mode"),
    ],
    "ex-4": [
        ("argmax(1) != labels", "argmax(1) == labels", "right answers"),
        ("np.argsort(-probabilities", "np.argsort(probabilities", "which way do you sort"),
    ],
    "ex-5": [
        (
            "np.unique(groups, return_inverse=True)",
            "np.unique(np.arange(len(groups)), return_inverse=True)",
            "slice by slice",
        ),
        ("accuracies, [0.025, 0.975]", "accuracies + 1, [0.025, 0.975]", "does not hold the accuracy"),
    ],
    "ex-6": [
        ("nn.GroupNorm(channels // 16, channels)", "nn.GroupNorm(1, channels)", "sixteen channels"),
        ("norm=lambda channels: nn.GroupNorm(channels // 16, channels)", "", "four GroupNorms"),
    ],
}
