"""Chapter 8: (text of the solution, what a student may write in its place, what the check then says)."""

CHAPTER = "08_comparing_classifiers"
GIVEN = """
import numpy as np
from scipy.stats import binom
"""
CELLS: dict[str, str | None] = {}
WRONG = {
    "ex-1": [
        ("np.unique(groups, return_inverse=True)", "np.unique(np.arange(len(groups)), return_inverse=True)", "worth 8"),
        ("((r - a * n) ** 2).sum()", "((r / n - a) ** 2).sum() * (total / len(n)) ** 2", "HIS number of slices"),
        ("(a * (1 - a) / total)", "(a * (1 - a))", "worth 8 slices"),
        ("return total / (", "return len(n) / (", "worth 8 slices"),
    ],
    "ex-2": [
        ("np.unique(groups, return_inverse=True)", "np.unique(np.arange(len(groups)), return_inverse=True)", "draw"),
        ("(balance < 0)", "(balance <= 0)", "leave draws out"),
        ("p = 2 * binom", "p = binom", "two sides"),
        ("float(min(1, p))", "float(p)", "p is 1"),
        ("binom.cdf(min(a, b)", "binom.cdf(a", "six heads"),
    ],
    "ex-3": [
        ("prevalence * hit + (1 - prevalence) * false)", "hit + false)", "plain precision"),
        ("called[~positive].mean()", "(called & ~positive).mean()", "plain precision"),
        ("score >= threshold", "score > threshold", "equal to the threshold"),
        ("/ (0.001 * 0.9)\n", "/ (0.9)\n", "one over the precision"),
        ("0.999 * 0.05", "0.05 * 0.9", "one over the precision"),
    ],
    "ex-4": [
        ('[np.argsort(confidence, kind="stable")]', "", "sorted by confidence"),
        ("np.argsort(confidence", "np.argsort(right - confidence", "sorted by confidence"),
        (
            "sum(abs(piece.sum()) for piece in pieces) / len(difference)",
            "sum(abs(piece.mean()) for piece in pieces) / bins",
            "weight each bin by its size",
        ),
        ("abs(piece.sum())", "piece.sum()", "three bins"),
    ],
    "ex-5": [
        ("(upper <= risk)", "(k / n <= risk)", "UPPER end"),
        ("np.argsort(-confidence", "np.argsort(confidence", "59 right answers"),
        (" & last", "", "answered together"),
        ("q[good[-1]]", "q[good[0]]", "102 answers"),
        ("if len(good) else np.inf", "if len(good) else q[0]", "return np.inf"),
        ("beta.ppf(0.95, k + 1,", "beta.ppf(0.95, k + 2,", "102 answers"),
    ],
    "ex-6": [
        ("[..., 1::2, :] *=", "[..., ::2, :] *= ", "bright point|ghost"),
        ("1 - 2 * a", "1 - a", "keeps 1 - a"),
        (
            "axis=-2)\n    lines[..., 1::2, :] *= 1 - 2 * a\n    return np.abs(np.fft.ifft(lines, axis=-2))",
            "axis=-1)\n    lines[..., 1::2] *= 1 - 2 * a\n    return np.abs(np.fft.ifft(lines, axis=-1))",
            "along which axis",
        ),
        ("np.abs(np.fft.ifft(lines, axis=-2))", "np.abs(lines)", "nothing happens"),
    ],
}
