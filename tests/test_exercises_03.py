"""The checks of chapter 3 refuse wrong answers, and say what is wrong."""

import json
from pathlib import Path

import pytest

CHAPTER = Path(__file__).resolve().parents[1] / "chapters" / "03_brats_volumes.ipynb"
GIVEN = """
import numpy as np
"""
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


def cells() -> dict[str, str]:
    return {cell["id"]: "".join(cell["source"]) for cell in json.loads(CHAPTER.read_text(encoding="utf-8"))["cells"]}


def check(name: str, old: str, new: str) -> None:
    source = cells()
    solution = source[f"{name}-solution"] + "\n"
    assert old in solution, f"the solution of {name} no longer holds {old!r}"
    exec(compile(GIVEN + solution.replace(old, new) + source[f"{name}-check"], name, "exec"), {})


@pytest.mark.parametrize("name", WRONG)
def test_solutions_pass(name):
    check(name, "", "")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"), [(n, *case) for n, cases in WRONG.items() for case in cases]
)
def test_wrong_answers_are_refused(name, old, new, message):
    with pytest.raises(AssertionError, match=message):
        check(name, old, new)


def test_every_exercise_is_tried():
    assert {name.removesuffix("-check") for name in cells() if name.endswith("-check")} >= set(WRONG)
    assert sum(name.startswith("ex-") and name.endswith("-solution") for name in cells()) == len(WRONG)
