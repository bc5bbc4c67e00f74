"""Chapter 10: (text of the solution, what a student may write in its place, what the check then says)."""

CHAPTER = "10_losses_and_metrics"
GIVEN = """
import numpy as np
import torch
from scipy import ndimage
"""
CELLS = {}
WRONG = {
    "ex-1": [
        ("** 3", "** 2", "volumes go with the cube"),
        ("2 / (1 + fat)", "1 / fat", "Dice is 2 T"),
        ("1 / fat", "fat ** -0.5", "IoU is 1/8"),
    ],
    "ex-2": [
        ("/ u.numel()", "", "6 everywhere"),
        ("p * (1 - p) * inside", "inside", "another pattern"),
        ("1 / u - 2 * t / a", "a / u**2 - 2 * t / u", "autograd's goes from"),
        ("(p + t).sum((2, 3), keepdim=True) + s", "(p + t).sum((2, 3), keepdim=True) + 1", "is s used"),
    ],
    "ex-3": [
        ("np.maximum(whole, 1), 1.0)", "np.maximum(whole, 1), 0.0)", "under 'brats' the mean is"),
        ('"nan": whole > 0', '"nan": tp + fn > 0', "under 'nan'"),
        ('"skip": tp + fn > 0', '"skip": tp > 0', "under 'skip'"),
        ("2 * tp + fp + fn", "tp + fp + fn", "under 'brats' the mean is"),
    ],
    "ex-4": [
        ("distance_transform_edt(~answer", "distance_transform_edt(answer", "perfect answer|contains the truth"),
        (
            "distance_transform_edt(~answer",
            "distance_transform_edt(~(answer & ~ndimage.binary_erosion(answer))",
            "no danger inside",
        ),
        (", sampling=spacing", "", "slices of 3 mm"),
        ("away[outline]", "away[truth]", "true outline that you count"),
        ("return 1.0", "return 0.0", "an empty answer"),
    ],
    "ex-5": [
        ("counts[batch == name].sum(0).T", "counts[batch == name].mean(0).T.round()", "add up the counts first"),
        ("np.where(tp + fp + fn > 0, score, np.nan)", "score * (tp + fp + fn > 0)", "is the empty batch left out"),
        ("in np.unique(batch)", "in (0, 1)", "batch numbers are names"),
        ("np.nanmean(columns, axis=0)", "np.nanmax(columns, axis=0)", "equal votes"),
    ],
    "ex-6": [
        ("torch.logit(share)", "share", "logit, not probability"),
        (".mean((0, 2, 3))", ".mean((0, 1, 2, 3)).expand(2)", "share of each channel"),
        (".clamp(1e-6, 1 - 1e-6)", "", "infinite bias"),
    ],
}
