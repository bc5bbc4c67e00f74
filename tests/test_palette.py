"""Figures with a palette: smaller, the same to the eye, and left alone where they are not."""

import base64
import io

import nbformat
import numpy as np
import pytest
from PIL import Image

from brainlib.palette import LARGEST_ERROR, lighten, with_palette


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)


@pytest.fixture(scope="module")
def plot() -> bytes:
    """What a plot is: white, a few colors, and gray edges."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(5, 3))
    for k in range(4):
        ax.plot(np.sin(np.arange(50) / (k + 3)), label=f"line {k}")
    ax.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    plt.close(figure)
    return buffer.getvalue()


def test_a_plot_becomes_much_smaller_and_looks_the_same(plot):
    light = with_palette(plot)
    assert len(light) < 0.6 * len(plot)
    difference = np.abs(pixels_of(light) - pixels_of(plot))
    assert difference.mean() < LARGEST_ERROR and Image.open(io.BytesIO(light)).mode == "P"
    assert with_palette(light) == light  # nothing is lost a second time


def test_a_picture_with_many_colors_stays():
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    assert with_palette(png(noise)) == png(noise)


def test_gray_levels_are_kept_exactly():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2).repeat(40, 0)
    ramp = np.concatenate([ramp, ramp[:, ::-1]])
    assert np.abs(pixels_of(with_palette(png(ramp))) - ramp).max() <= 1


def test_what_is_transparent_stays():
    clear = np.zeros((50, 50, 4), np.uint8)
    clear[10:20, 10:40] = (200, 30, 30, 255)
    assert with_palette(png(clear)) == png(clear)


def test_outputs_of_a_notebook(plot):
    text = base64.b64encode(plot).decode()
    cell = nbformat.v4.new_code_cell("draw()")
    cell.outputs = [
        nbformat.v4.new_output("display_data", {"image/png": text, "text/plain": "<Figure>"}),
        nbformat.v4.new_output("stream", text="done\n"),
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title"), cell])
    saved = lighten(notebook)
    smaller = cell.outputs[0]["data"]["image/png"]
    assert saved == len(text) - len(smaller) > 0 and cell.outputs[0]["data"]["text/plain"] == "<Figure>"
    assert lighten(notebook) == 0
