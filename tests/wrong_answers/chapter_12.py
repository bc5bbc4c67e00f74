"""Chapter 12: (text of the solution, what a student may write in its place, what the check then says)."""

CHAPTER = "12_improved_unet"
GIVEN = """
import numpy as np
import torch
from brainlib.models import count_multiply_adds, count_parameters
from brainlib.models.blocks import SeparableUnit
from torch import nn
"""
CELLS = {}
WRONG = {
    "ex-1": [
        ("(k * k + 1) * c", "k * k * c", "biases"),
        ("norm = 2 * c", "norm = 4 * c", "BatchNorm"),
        ("k * k * c + c * hidden", "k * k * c * c + c * hidden", "multiply-adds, you say"),
        ("work * side**2", "work", "each pixel does"),
    ],
    "ex-2": [
        ("weights * side**2", "weights", "k \\* k \\* c \\* d"),
        ("(c // groups)", "c", "depthwise"),
        ("max(work, memory)", "work", "in, out and 49 x 32 weights"),
        ("(c + d) * side**2 + weights", "(c + d) * side**2", "in, out and 49 x 32 weights"),
    ],
    "ex-3": [
        ("conv.weight * scale[:, None, None, None]", "conv.weight", "each kernel multiplied"),
        ("(conv.bias - norm.running_mean) * scale", "conv.bias - norm.running_mean * scale", "old bias passes"),
        ("norm.running_var + norm.eps", "norm.running_var + 1e-5", "is eps used"),
        ("norm.weight / torch.sqrt(norm.running_var + norm.eps)", "norm.weight", "beyond a constant"),
    ],
    "ex-4": [
        ("torch.cat([space.bias, torch.zeros(c)])", "torch.cat([space.bias, space.bias])", "must count once"),
        ("torch.cat([norm.bias, torch.zeros(c)])", "torch.cat([norm.bias, norm.bias])", "must count once"),
        ("torch.cat([expand.weight, expand.weight], 1)", "torch.cat([expand.weight, 0 * expand.weight], 1)", "differ"),
        (
            "torch.cat([norm.running_var, norm.running_var])",
            "torch.cat([norm.running_var, torch.ones(c)])",
            "running variance",
        ),
    ],
    "ex-5": [
        ("first if paired else draw()", "draw()", "the same seeds and patients"),
        ("first if paired else draw()", "first", "unpaired"),
        ("after[first].mean() - before[second]", "before[second].mean() - after[first]", "after minus before"),
        ("rng.integers(s, size=s)", "np.arange(s)", "draw seeds too"),
    ],
    "ex-6": [
        ("y + x if", "y + y if", "not x"),
        ("y + x if y.shape == x.shape else y", "y", "not x"),
        ("if y.shape == x.shape else y", "if y.shape == x.shape else y + x[:, : y.shape[1]]", "nothing to add"),
    ],
}
