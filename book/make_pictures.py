"""Make the phantom's pictures in book/_static/phantom: ``python book/make_pictures.py`` (about a minute).

- ``contact_sheet.webp``: the four classes in three planes, and one glioma in four modalities with its masks.
- ``sweep.webp``: the welcome page's picture, an axial sweep through one patient; the masks fade in on the way.
- ``sweep_still.webp``: its widest slice, for readers who asked their system for less motion.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from brainlib.data.phantom import Adenoma, Glioma, Head, Meningioma, Scan, Site, slice_points, to_bytes
from brainlib.data.phantom.tumors import LABELS
from brainlib.files import atomic_path

FOLDER = Path(__file__).parent / "_static" / "phantom"
PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
MASKS = {"NCR": ("#D55E00", "necrosis"), "ED": ("#F0E442", "edema"), "ET": ("#56B4E9", "enhancing tumor")}
MODALITIES = {"flair": "FLAIR", "t1": "T1", "t1c": "T1 with contrast agent", "t2": "T2"}
SITE = Site("S1", noise=0.015, shading=0.08, shading_mm=180)
INK, PAPER = "#d8dde0", "#000000"


def font(size: int) -> ImageFont.FreeTypeFont:
    """The typeface that comes with matplotlib."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def overlay(gray: np.ndarray, label: np.ndarray, strength: float) -> np.ndarray:
    """Color the masks into a gray picture (H, W): (H, W, 3) uint8. ``strength`` 0 shows none."""
    color = np.repeat(gray[..., None], 3, -1).astype(float)
    for name, value in LABELS.items():
        inside = label == value
        color[inside] += 0.6 * strength * (np.array(ImageColor.getrgb(MASKS[name][0])) - color[inside])
    return color.round().astype(np.uint8)


class Stripped:
    """Axial slices of one glioma patient in four modalities, without the skull, and their true masks."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.head = Head(self.rng)
        self.tumor = Glioma(self.head, self.rng, volume=(70, 71))
        self.tumor.uptake["enhancing tumor"] = 0.6
        self.scan = Scan(self.head, self.tumor, SITE, self.rng, tuple(MODALITIES))
        # One window for a whole modality, so that brightness does not jump from slice to slice.
        picture, _ = self.raw(float(self.tumor.center[2]))
        self.tops = [np.percentile(channel[channel > 0], 99.3) for channel in picture]

    def raw(self, z: float, size: int = 240, field: float = 208.0) -> tuple[np.ndarray, np.ndarray]:
        points = slice_points("axial", z, size, field, (6, 0))
        place = self.head.place(points, self.tumor)
        brain = place.brain < 0.5
        picture, label = np.zeros((4, size * size), np.float32), np.zeros(size * size, np.uint8)
        if brain.any():
            place = place.at(brain)
            layers, lesion = self.scan.tissues(place, head=False)
            picture[:, brain] = self.scan.picture(layers, place.points, self.rng)
            label[brain] = self.tumor.labels(lesion)
        return picture.reshape(4, size, size), label.reshape(size, size)

    def slice(self, z: float) -> tuple[np.ndarray, np.ndarray]:
        """Gray pictures (4, 240, 240) uint8 and labels at height z (mm)."""
        picture, label = self.raw(z)
        whites = (235, 165, 235, 235)  # T1 has no bright lesion that needs the upper end of the scale
        scaled = [channel / top * white for channel, top, white in zip(picture, self.tops, whites, strict=True)]
        return np.clip(scaled, 0, 255).astype(np.uint8), label


def legend(draw: ImageDraw.ImageDraw, x: float, y: float, size: int, fade: float = 1.0) -> None:
    """The colors of the masks, with their names."""
    for color, name in MASKS.values():
        ink = tuple(round(c * fade) for c in ImageColor.getrgb(color))
        gray = tuple(round(c * fade) for c in ImageColor.getrgb(INK))
        draw.rounded_rectangle((x, y + 2, x + size - 2, y + size), 2, fill=ink)
        draw.text((x + size + 5, y + size / 2 + 1), name, fill=gray, font=font(size), anchor="lm")
        x += size + 5 + draw.textlength(name, font=font(size)) + 18


def contact_sheet(patient: Stripped) -> Image.Image:
    """Four rows of classes (three patients, three planes each), and a row of modalities with the masks."""
    cell, left, top, columns = 136, 118, 40, 9
    big = (left + columns * cell) // 5 - 6
    width, height = left + columns * cell, top + 4 * cell + 34 + big + 30
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    kinds = {"glioma": Glioma, "meningioma": Meningioma, "no tumor": None, "pituitary": Adenoma}
    for k in range(3):
        draw.text((left + (3 * k + 1.5) * cell, 18), f"patient {k + 1} of each class", INK, font(14), anchor="mm")
    for row, (name, kind) in enumerate(kinds.items()):
        draw.text((10, top + (row + 0.5) * cell), name, INK, font(15), anchor="lm")
        for k in range(3):
            rng = np.random.default_rng([row, k, 11])
            head = Head(rng)
            tumor = kind(head, rng) if kind else None
            scan = Scan(head, tumor, SITE, rng)
            center = (
                tumor.center if tumor else np.array([rng.uniform(-30, 30), rng.uniform(-50, 30), rng.uniform(-20, 40)])
            )
            for column, (plane, axis) in enumerate(PLANES.items()):
                picture, _ = scan.slice(plane, float(center[axis]), 2 * cell, 262, (0, 0), rng)
                tile = Image.fromarray(to_bytes(picture[0], 0.95)).resize((cell, cell), Image.Resampling.LANCZOS)
                sheet.paste(tile, (left + (3 * k + column) * cell, top + row * cell))
    top += 4 * cell + 34
    pictures, label = patient.slice(widest(patient))
    tiles = [(overlay(p, label, 0), name) for p, name in zip(pictures, MODALITIES.values(), strict=True)]
    tiles.append((overlay(pictures[0], label, 1), "FLAIR with the true masks"))
    for k, (tile, name) in enumerate(tiles):
        x = k * (width // 5) + 3
        sheet.paste(Image.fromarray(tile).resize((big, big), Image.Resampling.LANCZOS), (x, top))
        draw.text((x + big / 2, top - 12), name, INK, font(14), anchor="mm")
    draw.text((10, height - 16), "phantom: simulated, not patients", INK, font(14), anchor="lm")
    legend(draw, width - 400, height - 25, 14)
    return sheet


def widest(patient: Stripped) -> float:
    """Height (mm) of the axial slice that shows most tumor core."""
    heights = patient.tumor.center[2] + np.arange(-24, 25, 4.0)
    return float(max(heights, key=lambda z: np.isin(patient.raw(z)[1], (1, 4)).sum()))


def frame(pictures: np.ndarray, label: np.ndarray, strength: float, dim: float = 1.0) -> Image.Image:
    """One frame of the sweep: four modalities side by side, 720 x 360 pixels, names above and mask colors below."""
    sheet = Image.new("RGB", (720, 360), "#0b0f12")
    draw = ImageDraw.Draw(sheet)
    for k, (picture, name) in enumerate(zip(pictures, MODALITIES.values(), strict=True)):
        tile = (overlay(picture, label, strength) * dim).astype(np.uint8)[4:236, 32:208]
        canvas = np.asarray(sheet)[60 : 60 + tile.shape[0], 180 * k + 2 : 180 * k + 2 + tile.shape[1]]
        sheet.paste(Image.fromarray(np.maximum(tile, canvas)), (180 * k + 2, 60))
        draw.text((180 * k + 90, 36), name, INK, font(13), anchor="mm")
    legend(draw, 12, 321, 13, 0.25 + 0.75 * strength)
    draw.text((708, 328), "phantom", "#7d878c", font(13), anchor="rm")
    return sheet


def sweep(patient: Stripped) -> tuple[list[Image.Image], list[int], Image.Image]:
    """Frames, durations (ms) and the still: up to the widest slice, the masks fade in, on to the top, fade out."""
    stop = widest(patient)
    frames, times = [], []
    for z in np.arange(-44, stop, 2.25):
        frames.append(frame(*patient.slice(z), 0, min(1, len(frames) / 3)))
        times.append(75)
    at_stop = patient.slice(stop)
    for strength in np.linspace(0, 1, 9):
        frames.append(frame(*at_stop, float(strength)))
        times.append(75)
    still = frames[-1]
    times[-1] = 1400
    rest = np.arange(stop + 2.25, 70, 2.25)
    for k, z in enumerate(rest):
        frames.append(frame(*patient.slice(z), 1, min(1, (len(rest) - k) / 4)))
        times.append(75)
    return frames, times, still


def main() -> None:
    patient = Stripped(33)
    with atomic_path(FOLDER / "contact_sheet.webp") as path:
        contact_sheet(patient).save(path, quality=74, method=6)
    frames, times, still = sweep(patient)
    with atomic_path(FOLDER / "sweep.webp") as path:
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0, quality=52, method=6)
    with atomic_path(FOLDER / "sweep_still.webp") as path:
        still.save(path, quality=82, method=6)
    for path in sorted(FOLDER.glob("*.webp")):
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
