"""Chapter 11: (text of the solution, what a student may write in its place, what the check then says)."""

CHAPTER = "11_classic_unet"
GIVEN = """
import numpy as np
import torch
import torch.nn.functional as F
from brainlib.models import ClassicUNet, count_parameters
from scipy import ndimage
from torch import nn
"""
CELLS = {"train-start": "\n\ndef ready"}
WRONG = {
    "ex-1": [
        ("-h % multiple, -w % multiple", "h % multiple, w % multiple", "251 columns"),
        ("left, across - left, top, down - top", "top, down - top, left, across - left", "F.pad begins with the last"),
        ("2**depth", "16", "multiple of 8"),
        ("slice(top, top + h), slice(left, left + w)", "slice(0, h), slice(0, w)", "does not give the image back"),
    ],
    "ex-2": [
        ("    n -= 4\n    for", "    for", "388, you say"),
        ("n <= 0 or n % 2", "n <= 0 or n % 4", "the size must be even"),
        ("n <= 0 or n % 2", "n <= 0", "573 becomes 569"),
        ("return n if n > 0 else None", "return n", "nothing is left"),
    ],
    "ex-3": [
        ("len(range(phase, k, s))", "k // s", "kernel 3, stride 2"),
        ("(high / low) ** 2", "high / low", "in two dimensions"),
        ('float("inf")', "0.0", "never hit: inf"),
    ],
    "ex-4": [
        ("9 * b * c + c", "9 * b * c", "Is each bias there"),
        ("(16 * n, 8 * n, 4 * n)", "(8 * n, 8 * n, 4 * n)", "twice the channels"),
        ("(inputs, n, n)", "(4, n, n)", "1 channels in"),
        ("n * outputs + outputs", "n * 3 + 3", "1 out at"),
    ],
    "ex-5": [
        (
            "torch.roll(still, 16, dims=-1) - moved",
            "still - moved",
            "do you move the first output",
        ),
        ("border:-border, border:-border", ":, :", "leave out the border"),
        (" / still.abs().max()", "", "must be relative"),
        ("align_corners=False", "align_corners=True", "what moves the corners"),
        ('mode="bilinear", align_corners=False', 'mode="nearest"', "is it bilinear"),
    ],
    "ex-6": [
        ("<= mm", "< mm", "the limit itself"),
        ("t ^ ndimage.binary_erosion(t)", "t", "inside is far|missed pixels within"),
        ("counts = found.setdefault(int(g), counts)", "found[int(g)] = counts", "false pixels within 2 mm"),
        (
            "near = np.zeros(t.shape, bool)",
            "near = np.ones(t.shape, bool)",
            "are far|false pixels within",
        ),
        ("(t & ~a & near)", "(a & ~t & near)", "nothing is missed"),
    ],
    "ex-7": [
        ("for level in levels:", "for level in (1, 2, 3, 4):", "no longer reads"),
        ("torch.cat([x, x], dim=1)", "torch.cat([x, skip], dim=1)", "still reads"),
        ("torch.cat([x, x], dim=1)", "torch.cat([x, 0 * x], dim=1)", "a second time"),
        ("    return net", "    return None", "must return the network"),
    ],
}
