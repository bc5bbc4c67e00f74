"""Chapter 13: (text of the solution, what a student may write in its place, what the check then says)."""

CHAPTER = "13_attention_unet"
GIVEN = """
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from brainlib.models import count_multiply_adds, count_parameters, create_model
"""
CELLS = {"gate-class": "", "cost-table": "assert count_parameters", "undo-weights": ""}
WRONG = {
    "ex-1": [
        ("2 * c * c + c", "c * c + c", "one product each"),
        ("* h * w  #", "* 4 * h * w  #", "one product each"),
        ("(2 * c * c + c) * h * w", "(2 * c * c + c) * h * h", "size of the map"),
        ("(n * 2**i, side // 2 ** (i + 1))", "(n * 2**i, side // 2**i)", "the networks differ by"),
    ],
    "ex-2": [
        ("make_up(net, value)\n", "pass\n", "the logits differ"),
        ("make_up(net, value)\n", "make_up(net, 1 / value)\n", "the logits differ"),
        ("np.log(value / (1 - value))", "value", "gate 1 should show"),
        ("nn.init.zeros_(score.weight)", "pass", "should show"),
        ("net.load_state_dict(plain.state_dict(), strict=False)", "pass", "the logits differ"),
    ],
    "ex-3": [
        ("nn.Conv2d(channels, channels, 2, stride=2)", "nn.Conv2d(channels, channels, 1, stride=2)", "leave no trace"),
        (
            "nn.Conv2d(channels, channels, 2, stride=2)",
            "nn.Conv2d(channels, channels, 4, stride=2, padding=1)",
            "55 parameters",
        ),
        ("F.relu(self.query(below) + self.key(skip))", "self.query(below) + self.key(skip)", "stay as they were"),
    ],
    "ex-4": [
        ("a[brain].mean()", "a.mean()", "only knows brain from air"),
        ("has = tumor.any((1, 2))", "has = tumor.any((1, 2)) | True", "slices without tumor must not count"),
        ("a[brain].mean()", "a[brain & ~tumor].mean()", "the brain includes the tumor"),
    ],
    "ex-5": [
        ("np.abs(means) >= abs(gain.mean())", "means >= gain.mean()", "count both directions"),
        ("gain = gain.mean(0)", "gain = gain.ravel()", "average over seeds first"),
        ("- 1e-12", "+ 1e-12", "count both directions"),
    ],
    "ex-6": [
        ("nn.Conv2d(channels, channels, 1)", "nn.Conv2d(channels, 1, 1)", "place and channel"),
        ("nn.Conv2d(channels, channels, 1)", "nn.Conv2d(channels, channels, 1, bias=False)", "60 parameters"),
    ],
}
