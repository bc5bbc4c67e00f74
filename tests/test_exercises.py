"""The checks of the exercises refuse wrong answers, and say what is wrong."""

import json
from pathlib import Path

import pytest

CHAPTER = Path(__file__).resolve().parents[1] / "chapters" / "05_custom_cnn.ipynb"
GIVEN = """
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from brainlib.evaluate import bootstrap
from brainlib.metrics import accuracy
from brainlib.models import CustomCNN, count_parameters
"""
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


def cells() -> dict[str, str]:
    return {cell["id"]: "".join(cell["source"]) for cell in json.loads(CHAPTER.read_text(encoding="utf-8"))["cells"]}


def check(name: str, old: str, new: str) -> None:
    """Run an exercise's check on its solution with ``old`` replaced by ``new``."""
    source = cells()
    solution = source[f"{name}-solution"] + "\n"
    assert old in solution, "the solution has changed: change this test as well"
    place: dict = {}
    exec(GIVEN + source["channels-check"].split("stem =")[0], place)
    exec(solution.replace(old, new), place)
    exec(source[f"{name}-check"], place)


@pytest.mark.parametrize("name", WRONG)
def test_the_solution_passes(name):
    check(name, "", "")


@pytest.mark.parametrize(("name", "old", "new", "message"), [(n, *w) for n, several in WRONG.items() for w in several])
def test_a_wrong_answer_is_refused(name, old, new, message):
    with pytest.raises(AssertionError, match=message):
        check(name, old, new)
