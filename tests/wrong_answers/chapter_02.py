"""Chapter 2: (text of the solution, what a student may write in its place, what the check then says)."""

CHAPTER = "02_brain_tumor_mri"
GIVEN = """
from types import SimpleNamespace
import numpy as np
likeness = np.eye(4)
data = SimpleNamespace(labels=np.arange(4), groups=np.arange(4))
"""
CELLS = {}
WRONG = {
    "ex-1": [
        ("(n - (rows.stop - rows.start)) // 2", "-(-(n - (rows.stop - rows.start)) // 2)", "below the box"),
        ("max(rows.stop", "min(rows.stop", "a square of 6 x 6"),
        ("np.pad(image, n)", "np.pad(image, n, constant_values=9)", "must be black"),
    ],
    "ex-2": [
        ("1 / (share**2).sum()", "len(share)", "are the shares squared"),
        ("count / count.sum()", "count / len(labels)", "shares within the class"),
        ("pictures[labels == c]", "pictures", "shares within the class"),
    ],
    "ex-3": [
        ("blocks > blocks.mean()", "blocks > 0", "brightness and contrast"),
        ("mean(axis=(1, 3))", "mean(axis=(0, 2))", "order of the axes"),
        ("bits[:, ::-1]", "bits[::-1]", "which axis"),
    ],
    "ex-4": [
        ("groups[:, None] != groups[None]", "~np.eye(len(groups), dtype=bool)", "share a group"),
        ("likeness, -np.inf", "likeness, 0", "lower than any"),
        ("argmax(1)", "argmin(1)", "neighbors"),
    ],
    "ex-5": [
        ('np.argsort(-sizes, kind="stable")', "range(len(sizes))", "large groups first"),
        (".max())", ".min())", "which fold got the last group"),
        ("np.isin(groups, names_)", "np.isin(groups, names_[:1])", "exactly one fold"),
    ],
    "ex-6": [
        ("np.round(255 * rank", "np.round(200 * rank", "from 0 to 255"),
        ("below / max(1, below[-1])", "values / 200", "from 0 to 255"),
        ("below / max(1, below[-1])", "(values - 10.0) / 190", "same ranks"),
    ],
}
