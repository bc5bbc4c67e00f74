"""Chapter 4: (text of the solution, what a student may write in its place, what the check then says)."""

CHAPTER = "04_first_classifier"
GIVEN = """
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
"""
CELLS = {}
WRONG = {
    "ex-1": [
        ("s / z.shape[1])", "s / (z.shape[1] - 1))", "what does the target add up to"),
        ("+= 1 - s", "+= 1", "what does the target add up to"),
        ("m = z.amax(1, keepdim=True)", "m = 0 * z", "logits in the thousands"),
        (".sum(1).mean()", ".mean()", r"with s = 0.0 the loss is"),
    ],
    "ex-2": [
        (" * (before > 0)", "", "zero where ReLU is flat"),
        ("error = error / len(x)  # of a mean loss", "pass", "is it a mean over slices"),
        ("error.T @ h,", "error.T @ before,", "the gradient of W2 is wrong"),
        ("blame.T @ x, blame.sum(0)", "x.T @ blame, blame.sum(0)", "has shape"),
        ("blame.sum(0), error", "blame.mean(0), error", "the gradient of b1 is wrong"),
    ],
    "ex-3": [
        ('state.get("sum", 0) + g', "g", "after the second backward"),
        ('state.get("sum", 0) + g', '0.9 * state.get("sum", 0) + g', "after the second backward"),
        ("same_as_momentum_with_beta = 1 ", "same_as_momentum_with_beta = 0.9 ", "does it fade here"),
    ],
    "ex-4": [
        ("(epoch + 1) / (warm + 1)", "epoch / warm", "the warm-up to 0.5 in 4 epochs"),
        ("(epoch - warm) / (epochs - warm)", "epoch / epochs", "epoch 4 has the top rate"),
        ("(epoch - warm) / (epochs - warm)", "(epoch - warm) / epochs", "over how many epochs"),
        ("np.pi * along", "2 * np.pi * along", "half the top"),
    ],
    "ex-5": [
        (" * len(part) / len(images)", "", "count by their sizes"),
        (" * len(part) / len(images)", " / len(images.split(piece))", "count by their sizes"),
        ("model.zero_grad()", "pass", "every call begins with zero_grad"),
        ("total += loss.item()", "total = loss.item()", "the mean loss is"),
        ("images.split(piece), labels.split(piece)", "images.split(80), labels.split(80)", "does not fit into memory"),
    ],
    "ex-6": [
        ("right.mean(1).std(ddof=1)", "right.mean(0).std(ddof=1)", "no spread over seeds"),
        ("right.mean(1).std(ddof=1)", "right.mean(1).std()", "have a standard deviation"),
        ("patients = np.unique(groups)", "groups = patients = np.arange(len(groups))", "do slices or patients count"),
        ("np.sqrt(len(patients))", "len(patients)", "over patients it is"),
        ("right[:, groups == p].mean()", "right[0, groups == p].mean()", "over all seeds"),
    ],
    "ex-7": [
        (
            "deepcopy((model.state_dict(), optimizer.state_dict()))",
            "(model.state_dict(), optimizer.state_dict())",
            "copy",
        ),
        ("optimizer.load_state_dict(memory)", "pass", "Adam's averages"),
        ("model.load_state_dict(weights)", "pass", "after the power cut"),
    ],
}
