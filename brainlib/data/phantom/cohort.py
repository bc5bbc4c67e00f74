"""Who is in the set: patients, their diagnoses and sites, which slices go where, and how long they live.

Everything is drawn from ``numpy.random.SeedSequence([seed, set, patient])``, so a patient's pictures depend neither on
the other patients nor on the process that makes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..mri import CLASSES
from .anatomy import Head
from .imaging import PLANES, Scan, Site, to_bytes
from .settings import PhantomSettings
from .tumors import Adenoma, Glioma, Meningioma, Tumor

_SITES, _SPLITS, _SLICES, _VOLUMES = range(4)  # the second number of a seed sequence: what is drawn


def _generator(seed: int, what: int, patient: int = 0) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, what, patient]))


def sites(settings: PhantomSettings, seed: int) -> list[Site]:
    """The hospitals of the set."""
    rng = _generator(seed, _SITES)
    return [Site.draw(number, rng) for number in range(1, settings.sites + 1)]


@dataclass(frozen=True)
class Patient:
    """One patient of the classification set. ``files`` names the picture of each slice."""

    number: int
    label: str
    site: int
    files: tuple[str, ...]

    @property
    def id(self) -> str:
        """Name of the patient, without a hint at the class."""
        return f"P{self.number:04d}"


def patients(settings: PhantomSettings, seed: int) -> list[Patient]:
    """All patients of the classification set, with the folder and the number of each of their pictures.

    Within each class and folder the numbers are shuffled: a number tells nothing about the patient.
    """
    rng = _generator(seed, _SPLITS)
    count, slices = settings.patients_per_class, settings.slices_per_patient
    ids = rng.permutation(count * len(CLASSES))
    found = []
    for row, label in enumerate(CLASSES):
        testing = np.zeros((count, slices), bool)
        order = rng.permutation(count)
        testing[order[: settings.test_patients]] = True
        for patient in order[settings.test_patients :][: settings.leaked_patients]:
            testing[patient, rng.permutation(slices)[: settings.leaked_slices]] = True
        numbers = np.empty((count, slices), int)
        numbers[testing] = rng.permutation(testing.sum())
        numbers[~testing] = rng.permutation((~testing).sum())
        home = rng.permutation(np.arange(count) % settings.sites)
        for patient in range(count):
            files = tuple(
                f"{folder}/{label}/{prefix}-{label[:2]}_{number:04d}.jpg"
                for number, test in zip(numbers[patient], testing[patient], strict=True)
                for folder, prefix in [("Testing", "Te") if test else ("Training", "Tr")]
            )
            found.append(Patient(int(ids[row * count + patient]), label, int(home[patient]), files))
    return sorted(found, key=lambda patient: patient.number)


def draw_tumor(kind: str, head: Head, rng: np.random.Generator) -> Tumor:
    """A tumor of the classification set: also small ones, and gliomas of which a third hardly enhance."""
    if kind == "glioma":
        return Glioma(head, rng, volume=(15, 85), high_grade=rng.random() < 0.7)
    if kind == "meningioma":
        return Meningioma(head, rng, radius=(8, 21))
    return Adenoma(head, rng)


def draw_positions(
    tumor: Tumor, head: Head, count: int, rng: np.random.Generator, least: float = 0.25
) -> list[tuple[str, float]]:
    """Planes and positions (mm) of ``count`` slices through a tumor.

    The planes are spread evenly. In each, positions are uniform over the extent in which the cut through the tumor
    has at least ``least`` of its largest area: slices at the tumor's edge belong to the set, as in clinical exports.
    """
    half = tumor.reach + 3
    axis = np.arange(-half, half, 2.5, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, -1) + tumor.center[:, None]
    grid = grid.astype(np.float32)
    inside = tumor.core(tumor.layers(head.place(grid, tumor))).reshape((axis.size,) * 3) > 0.5
    planes = [list(PLANES)[k % 3] for k in range(count)]
    rng.shuffle(planes)
    found = []
    for plane in planes:
        across = PLANES[plane][0]
        area = inside.sum(tuple(k for k in range(3) if k != across))
        good = np.flatnonzero(area >= max(1, least * area.max())) if area.any() else np.array([axis.size // 2])
        position = tumor.center[across] + axis[rng.choice(good)] + rng.uniform(-1.25, 1.25)
        found.append((plane, float(position)))
    return found


@dataclass
class Picture:
    """One slice of the classification set, before it is written."""

    path: str
    plane: str
    position_mm: float
    image: np.ndarray  # (size, size) uint8
    quality: int
    tumor_px: int


def examine(patient: Patient, settings: PhantomSettings, seed: int) -> list[Picture]:
    """Make all slices of one patient of the classification set.

    A patient without a tumor is cut where a tumor of a random kind would have been: the law of the positions, like
    those of field of view, size, brightness, shading, noise and JPEG quality, is the same in all classes.
    """
    rng = _generator(seed, _SLICES, patient.number)
    head = Head(rng)
    kind = patient.label if patient.label != "notumor" else rng.choice([c for c in CLASSES if c != "notumor"])
    tumor = draw_tumor(str(kind), head, rng)
    positions = draw_positions(tumor, head, settings.slices_per_patient, rng)
    scan = Scan(head, tumor if patient.label != "notumor" else None, sites(settings, seed)[patient.site], rng)
    size = int(rng.integers(settings.size_px[0], settings.size_px[1] + 1))
    field = rng.uniform(*settings.field_mm)
    made = []
    for path, (plane, position) in zip(patient.files, positions, strict=True):
        picture, core = scan.slice(plane, position, size, field, rng.uniform(-6, 6, 2), rng)
        image = to_bytes(picture[0], rng.uniform(0.75, 1.1))
        made.append(Picture(path, plane, position, image, int(rng.integers(82, 96)), int((core > 0.5).sum())))
    return made


@dataclass
class Volume:
    """One patient of the segmentation set: the chosen axial slices in the array order of BraTS."""

    number: int
    grade: str  # HGG or LGG
    site: str
    images: np.ndarray  # (S, 240, 240, 4) uint16: FLAIR, T1, T1c, T2, white matter about 1000; 0 outside the brain
    labels: np.ndarray  # (S, 240, 240) uint8: 0, NCR 1, ED 2, ET 4
    truth: dict[str, float]  # the whole tumor's volumes in ml


def volume(number: int, settings: PhantomSettings, seed: int) -> Volume:
    """Make patient ``number`` (from 1) of the segmentation set on the 1 mm grid of BraTS, skull-stripped."""
    rng = _generator(seed, _VOLUMES, number)
    low_grade = number in _low_grade(settings, seed)
    site = sites(settings, seed)[int(rng.integers(settings.sites))]
    head = Head(rng)
    tumor = Glioma(head, rng, high_grade=not low_grade)
    scan = Scan(head, tumor, site, rng, ("flair", "t1", "t1c", "t2"))
    images = np.zeros((len(settings.slices), 240 * 240, 4), np.uint16)
    labels = np.zeros((len(settings.slices), 240 * 240), np.uint8)
    for row, z in enumerate(settings.slices):
        points = brats_points(z)
        box = np.flatnonzero((np.abs(points[0]) < 88) & (np.abs(points[1] + 18) < 108))  # no brain is larger
        place = head.place(np.ascontiguousarray(points[:, box]), tumor)
        near = place.brain < 0.5
        place, brain = place.at(near), box[near]
        layers, lesion = scan.tissues(place, head=False)
        picture = scan.picture(layers, place.points, rng)
        images[row, brain] = np.clip(np.rint(1000 * picture.T), 1, 65535)
        labels[row, brain] = tumor.labels(lesion)
    shape = (len(settings.slices), 240, 240)
    return Volume(
        number,
        "LGG" if low_grade else "HGG",
        site.name,
        images.reshape(*shape, 4),
        labels.reshape(shape),
        tumor.volumes(head),
    )


def brats_points(z: int) -> np.ndarray:
    """World points (3, 240 * 240) of one axial BraTS slice: axes run to the left and to the back, 1 mm."""
    i, j = np.meshgrid(np.arange(240), np.arange(240), indexing="ij")
    points = np.stack([119.5 - i, 102.0 - j, np.full_like(i, z - 72)])
    return points.reshape(3, -1).astype(np.float32)


def _low_grade(settings: PhantomSettings, seed: int) -> set[int]:
    order = _generator(seed, _SPLITS, 1).permutation(settings.volumes)
    return {int(n) + 1 for n in order[: settings.low_grade]}


#: The survival model. log(days) = a + age (age - 60) + core log(core / 20 ml) + edema log(edema / 30 ml) + GTR + noise.
SURVIVAL = {"a": math.log(420), "age": -0.02, "core": -0.35, "edema": -0.15, "gtr": 0.3, "noise": 0.35}


def survival(number: int, truth: dict[str, float], settings: PhantomSettings, seed: int) -> dict[str, object]:
    """Age (years), resection, survival (days) and its noise-free expectation for one high-grade patient.

    The model is :data:`SURVIVAL`, with the true volumes and normal noise of standard deviation ``noise`` on the log
    scale: no predictor can do better than ``expected_days``. Age is normal (60, 12), cut to 20-86; resection is GTR,
    STR or unknown. The form of the model (age, tumor burden and resection matter) follows the clinical literature in
    kind, not in its numbers.
    """
    rng = _generator(seed, _VOLUMES, 100_000 + number)
    age = float(np.clip(rng.normal(60, 12), 20, 86))
    resection = str(rng.choice(["GTR", "STR", "NA"], p=[0.5, 0.1, 0.4]))
    m = SURVIVAL
    log_days = (
        m["a"]
        + m["age"] * (age - 60)
        + m["core"] * math.log(max(truth["core_ml"], 0.5) / 20)
        + m["edema"] * math.log(max(truth["edema_ml"], 0.5) / 30)
        + m["gtr"] * (resection == "GTR")
    )
    days = math.exp(log_days + m["noise"] * rng.standard_normal())
    return {"age": age, "resection": resection, "days": max(5, round(days)), "expected_days": math.exp(log_days)}
