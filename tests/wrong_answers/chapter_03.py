"""Chapter 3: (text of the solution, what a student may write in its place, what the check then says)."""

CHAPTER = "03_brats_volumes"
GIVEN = """
import numpy as np
"""
CELLS = {}
WRONG = {
    "ex-1": [
        ("array.transpose(axis)", "array", "shape \\(4, 2, 3\\)"),
        ("[-1, -1, 1]", "[1, 1, 1]", "nothing may change"),
        (":: int(sign[0])", "::1", "flip the first axis"),
        ("turn[np.arange(3), axis]", "turn.sum(axis=0)", "sign after exchanging"),
    ],
    "ex-2": [
        ("labels[et] = 4", "labels[et] = 3", "there is no 3"),
        ("tc = tc & wt", "pass", "ET outside TC"),
        ("labels[tc] = 1", "pass", "necrotic core"),
    ],
    "ex-3": [
        ("np.argmin", "np.argmax", "channel 2 is T2"),
        ("healthy.argsort(axis=1).argsort(axis=1) / (n - 1)", "healthy / healthy.max()", "compare ranks|T2"),
        ("np.delete(rank[:, own > 0.97], c, axis=0)", "rank[c, own > 2 - 1.03]", "channel 2 is T2"),
    ],
    "ex-4": [
        ("[1, 99]", "[0, 100]", "one bright voxel"),
        ("channel[channel > 0], [1, 99]", "channel, [1, 99]", "without the background"),
        ("np.where(channel > 0, scaled, 0)", "scaled + 0.1", "clip to|background"),
    ],
    "ex-5": [
        ("step.prod()", "step[0] ** 3", "third axis"),
        (" + 0.5", "", "half a voxel"),
        ("len(where)", "mask.sum()", "1000 mm3|add up labels"),
        ("mask > 0", "mask != 4", "half the block"),
    ],
    "ex-6": [
        ("np.minimum(place, reach)", "np.full(n, reach)", "end slices"),
        ("np.minimum(n - 1 - place, reach)", "np.minimum(n - place, reach)", "end slices"),
        ("(1 - f) ** (below + above)", "(1 - f) ** np.maximum(below + above, 2)", "end slices"),
    ],
}
