"""Chapter 9: (text of the solution, what a student may write in its place, what the check then says)."""

CHAPTER = "09_looking_inside"
GIVEN = """
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from brainlib.explain import attention_rollout
"""
CELLS = {}
WRONG = {
    "ex-1": [
        ("kernels.mean(1, keepdim=True)", "kernels.mean(0, keepdim=True)", "Over which axis"),
        ("kernels.mean(1, keepdim=True)", "kernels.mean((1, 2, 3), keepdim=True)", "Over which axis"),
        ("difference.square().sum()", "difference.abs().sum()", "independent channels"),
    ],
    "ex-2": [
        ("(gradient * kept[0])", "(gradient.mean((2, 3), keepdim=True) * kept[0])", "Do you still average"),
        ("F.relu((gradient * kept[0]).sum(1))", "(gradient * kept[0]).sum(1)", "speak against the class"),
        ("net.eval()(images", "net.train()(images", "in evaluation mode"),
        ("(gradient * kept[0]).sum(1)", "gradient.sum(1)", "gradient times map"),
        ("    handle.remove()\n", "", "remove the hook"),
    ],
    "ex-3": [
        ("torch.full_like(images, baseline)", "torch.zeros_like(images)", "From where to where"),
        ("net.eval()", "net.train()", "In which mode"),
        ("/ change.abs()", "", "a share of what"),
        ("- change).abs()", "- change)", "a share of what|a gap of 2"),
    ],
    "ex-4": [
        ("heat[head & ~mask]", "heat[~mask]", "Is the air left out"),
        ("heat[head & ~mask]", "heat[head]", "left out of the rest"),
        ("rankdata(np.concatenate([inside, outside]))", "rankdata(np.concatenate([inside, outside]), 'min')", "ties"),
    ],
    "ex-5": [
        (
            "0.5 * (weights.mean(1) + torch.eye(tokens)) @ flow",
            "flow @ (0.5 * (weights.mean(1) + torch.eye(tokens)))",
            "in which order",
        ),
        ("0.5 * (weights.mean(1) + torch.eye(tokens))", "weights.mean(1)", "half of the identity"),
        ("weights.mean(1)", "weights.amax(1)", "heads averaged"),
    ],
    "ex-6": [
        ("free = images[answer(images) != target]", "free = images", "pasting nothing"),
        ("free.copy()", "free", "white elsewhere"),
        ("free = images[answer(images) != target]", "free = images[answer(images) == target]", "pasting nothing"),
    ],
}
