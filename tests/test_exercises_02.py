"""The checks of chapter 2 refuse wrong answers, and say what is wrong."""

import json
from pathlib import Path

import pytest

CHAPTER = Path(__file__).resolve().parents[1] / "chapters" / "02_brain_tumor_mri.ipynb"
GIVEN = """
from types import SimpleNamespace
import numpy as np
likeness = np.eye(4)
data = SimpleNamespace(labels=np.arange(4), groups=np.arange(4))
"""
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
